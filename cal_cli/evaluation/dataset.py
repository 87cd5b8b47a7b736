"""The rows and pictures of a benchmark's data set, from the hub or from the same files in a folder."""

import hashlib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from cal_cli.data.llava_json import open_image, open_inside
from cal_cli.data.tables import BUILDERS, files_of, loaded
from cal_cli.errors import InputError

HELD_OUT = ("val", "validation", "dev")  # names of one split


def rows_of(path: str, name: str | None, split: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """A data set with its pictures as bytes, and what pins its state: a commit of the hub, or the files' hash.

    Raises:
        InputError: it cannot be had.
    """
    if not sys.stderr.isatty():
        import datasets

        datasets.disable_progress_bars()
    files = files_of_split(Path(path), name, split)
    if not files and files_of(Path(path)):
        raise InputError(f"benchmark.path={path}: holds no {', '.join(BUILDERS)} file of the split {split}")
    found = loaded(path, name, split, files, revision, key="benchmark")
    return found, {"sha256": sha256_of(files)} if files else {"revision": commit_of(found) or revision}


def files_of_split(path: Path, name: str | None, split: str) -> list[Path]:
    """The data files of a folder that belong to a configuration and a split, by their names.

    Names as the hub gives them (`test-00000-of-00002.parquet`) must name the split, and so must others where they name
    splits at all; `val`, `validation` and `dev` are one. A single file that is given is taken as it is.
    """

    def naming(words: Sequence[str], files: list[Path]) -> list[Path]:
        pattern = re.compile(rf"(^|\W|_)({'|'.join(map(re.escape, words))})(\W|_|$)")
        return [file for file in files if pattern.search(inside(file, path))]

    files = files_of(path)
    if path.is_file():
        return files
    if name is not None:
        files = naming([name], files) or files
    told = naming([split], files) or naming(HELD_OUT if split in HELD_OUT else [split], files)
    others = naming(["train", "test", *HELD_OUT], files)
    return told or [file for file in files if file not in others and not re.search(r"-\d+-of-\d+", file.name)]


def inside(file: Path, folder: Path) -> str:
    """A file's name with those of the folders between it and `folder`."""
    return str(file.relative_to(folder)) if file != folder else file.name


def sha256_of(files: Sequence[Path]) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def commit_of(rows: Any) -> str | None:
    """The hub's commit that a data set was made from, as `datasets` notes it with what it has fetched."""
    for url in rows.info.download_checksums or {}:
        found = re.search(r"@([0-9a-f]{40})/", url)
        if found:
            return found[1]
    # from the cache, whose folders are named after it
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)), None)


@dataclass
class Picture:
    """A row's pictures, read when they are asked for: nothing is kept of them.

    Args:
        rows: the data set with no column but that of the pictures, or None.
        number: of the row.
        folder: where files lie.
    """

    rows: Any
    number: int
    folder: Path

    def values(self) -> list[Any]:
        """What the row has of each picture: its bytes, a name, or both."""
        if self.rows is None:
            return []
        (value,) = self.rows[self.number].values()
        return [one for one in (value if isinstance(value, list) else [value]) if one is not None]

    def open(self) -> list[Image.Image]:
        """The pictures as RGB.

        Raises:
            InputError: one cannot be read.
        """
        return [self._open(value) for value in self.values()]

    def _open(self, value: Any) -> Image.Image:
        if isinstance(value, str):
            return open_inside(self.folder, value)
        content = value if isinstance(value, bytes) else value["bytes"]
        return open_image(Path(value["path"]) if content is None else io.BytesIO(content))

    @property
    def shown(self) -> bool:
        return bool(self.values())

    @cached_property
    def size(self) -> tuple[int, int]:
        return self.open()[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


def fingerprint(values: Sequence[Any]) -> str | None:
    """The same for the same pictures: a hash of what they are read from; None of none."""
    if not values:
        return None
    digest = hashlib.sha256()
    for value in values:
        content = value if isinstance(value, bytes | str) else value["bytes"] or value["path"]
        digest.update(content.encode() if isinstance(content, str) else content)
    return digest.hexdigest()[:16]


def outlined(picture: Picture, box: Sequence[float]) -> list[Image.Image]:
    """A row's picture with a red line around a box (left, top, width, height), as lmms-eval marks a region."""
    (image,) = picture.open()
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle([left, top, left + width, top + height], outline="red")
    return [image]
