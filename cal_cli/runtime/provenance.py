"""Where a result comes from: package versions, device and commit."""

import platform
import subprocess
from importlib.metadata import version
from pathlib import Path


def get_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    packages = ("cal_cli", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def get_device_name() -> str:
    """Return the name of the accelerator, or the kind of CPU and the number of threads that torch uses."""
    import torch  # here, because it takes seconds, and commands that run no model ask for versions alone

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def get_git_commit() -> str | None:
    """Return the commit of the checkout that contains this package; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
