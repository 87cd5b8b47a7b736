"""What a result comes from: versions, device, commit and files; and whether earlier work is still valid."""

import contextlib
import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cal_cli.runtime.files import read_json, write_json


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


HASHES = Path("runs/hashes.json")  # of files that were read before, by path, size and time
LARGE = 2**30  # bytes; a larger file counts by its size and time, without being read


def fingerprint(*paths: str | Path) -> str:
    """Return the first 16 hexadecimal digits of a SHA-256 over the names and contents of files and folders.

    A file with the path, size and time of an earlier call is not read again. A path that does not exist, such as a hub
    id, counts by its name.
    """
    known: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError):  # missing or damaged
        known = json.loads(HASHES.read_text())
    before, digest = len(known), hashlib.sha256()
    for path in map(Path, paths):
        files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        for file in files:
            digest.update(f"{file.relative_to(path) if path.is_dir() else file.name}\0".encode())
            if not file.is_file():
                continue
            state = file.stat()
            key = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
            if key not in known and state.st_size <= LARGE:
                known[key] = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(known.get(key, key).encode())
    if len(known) > before:
        with contextlib.suppress(OSError):  # without it, files are read again
            write_json(HASHES, known)
    return digest.hexdigest()[:16]


def fingerprint_states(files: Iterable[Path]) -> str:
    """Return such digits for the names, sizes and times of many files, such as images, without reading them.

    A file that does not exist counts by its name.
    """
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file}\0".encode())
        if file.is_file():
            state = file.stat()
            digest.update(f"{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def identify_files(named: Mapping[str, Any]) -> dict[str, str]:
    """Return a fingerprint of each value that is the path of a file or folder, by its key."""
    return {key: fingerprint(path) for key, path in named.items() if isinstance(path, str) and Path(path).exists()}


def find_differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which what earlier work depended on, as JSON, differs from what it would depend on now."""
    now = json.loads(json.dumps(now))
    return sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def begin_work(folder: Path, identity: Mapping[str, Any], anew: bool = False) -> list[str]:
    """Prepare a folder for work that may be interrupted; discard what is there if its identity, in `_of.json`, differs.

    The identity is what the work depends on, as JSON; `anew` discards what is there in any case. Returns the keys in
    which discarded work differs.
    """
    path = folder / "_of.json"  # readers of a folder of Parquet files ignore names that begin with an underscore
    before = read_json(path, {})
    differing = find_differences(before, identity)
    if anew or differing:
        shutil.rmtree(folder, ignore_errors=True)
        write_json(path, identity)
    return differing if before else []
