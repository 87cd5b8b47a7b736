"""Files that are written whole or not at all, and what a result says about where it was made."""

import hashlib
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch


def write_whole(path: Path, content: str | bytes) -> str:
    """Write a file aside and rename it, so that nobody ever reads half of it and an older one is lost only then.

    Returns:
        The SHA-256 of the content, in hexadecimal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_bytes(data)
    os.replace(aside, path)
    return hashlib.sha256(data).hexdigest()


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    packages = ("cal_cli", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def device_name() -> str:
    """The accelerator's name, or the processor and the number of threads that torch uses."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def git_commit() -> str | None:
    """The commit of the checkout that the package runs from; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
