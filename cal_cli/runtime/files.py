"""Write files and folders so that readers see the old version or the new one, never half of either.

Fingerprints of files say whether earlier work is still valid.
"""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import yaml
from matplotlib.figure import Figure

from cal_cli.runtime.errors import InputError


def read_json(path: Path, missing: Any = None, parse: Callable[[str], Any] = json.loads) -> Any:
    """Read a file that this package wrote, as JSON or as `parse` reads it; return `missing` if there is none.

    Raises InputError if it has been damaged.
    """
    if not path.is_file():
        return missing
    try:
        return parse(path.read_text())
    except (ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise InputError(f"{path} is damaged ({problem}): remove it, and repeat the command that wrote it") from error


def read_lines(path: Path) -> list[Any]:
    """Read a file of JSON lines, see `read_json`; empty if there is none."""
    return read_json(path, [], lambda text: [json.loads(line) for line in text.splitlines()])


def write_json(path: Path, document: Any, indent: int | None = 2) -> None:
    """Write a JSON file, see `write_whole`; a number that is not finite becomes null, which JSON has no word for."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [clean(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    write_whole(path, json.dumps(clean(document), indent=indent, allow_nan=False) + "\n")


def write_parquet(path: Path, table: Any) -> None:
    """Write a table of pyarrow as Parquet, see `write_whole`."""
    import pyarrow.parquet  # here, because most commands write none

    buffer = BytesIO()
    pyarrow.parquet.write_table(table, buffer)
    write_whole(path, buffer.getvalue())


def write_whole(path: Path, content: str | bytes) -> str:
    """Write a file under a temporary name, then rename it, and remove what a killed process left under such a name.

    Returns the SHA-256 of the content, in hexadecimal.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    os.replace(temporary, path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if (owner := left.suffix[1:]).isdecimal() and not psutil.pid_exists(int(owner)):
            left.unlink(missing_ok=True)
    return hashlib.sha256(data).hexdigest()


def replace_folder(folder: Path, *writers: Callable[[Path], Any]) -> None:
    """Let writers fill a temporary folder, then rename it to `folder`."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    for write in writers:
        write(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def remove_folder(folder: Path) -> None:
    """Rename a folder, if it exists, to a hidden name, then remove it, and what a kill left under that name."""
    temporary = folder.with_name(f".{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    if folder.exists():
        folder.rename(temporary)
        shutil.rmtree(temporary)


FORMATS = ("pdf", "png", "svg")


def encode_figure(figure: Figure, file_format: str = "png", dpi: int = 150) -> bytes:
    """Encode a figure as PDF, PNG or SVG: the same bytes from the same figure, without the date."""
    buffer = BytesIO()
    metadata = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(file_format)
    with matplotlib.rc_context({"svg.hashsalt": "cal_cli"}):
        figure.savefig(buffer, format=file_format, dpi=dpi, metadata=metadata)
    return buffer.getvalue()


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
