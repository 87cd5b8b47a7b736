"""The rows and images of a benchmark's data set, from the hub or from the same files in a folder."""

import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from cal_cli.data.hf_datasets import BUILDERS, find_files, load_table
from cal_cli.data.images import open_image
from cal_cli.data.llava_json import open_inside
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import hash_files

HELD_OUT = ("val", "validation", "dev")  # names of the same split


def load_rows(path: str, name: str | None, split: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """Load a data set with its images as bytes, and what identifies it: a commit of the hub, or the files' hash.

    Raises InputError if it is not available.
    """
    files = find_split_files(Path(path), name, split)
    if not files and find_files(Path(path)):
        raise InputError(f"benchmark.path={path}: contains no {', '.join(BUILDERS)} file of the split {split}")
    found = load_table(path, name, split, files, revision, key="benchmark")
    return found, {"sha256": hash_files(files)} if files else {"revision": find_commit(found) or revision}


def find_split_files(path: Path, name: str | None, split: str) -> list[Path]:
    """Find the data files of a folder that belong to a configuration and a split, by their names.

    Names in the hub's format (`test-00000-of-00002.parquet`) must contain the split, and so must other names if they
    contain one at all; `val`, `validation` and `dev` are equal. A path to a single file is used as it is.
    """

    def select(words: Sequence[str], files: list[Path]) -> list[Path]:
        pattern = re.compile(rf"(^|\W|_)({'|'.join(map(re.escape, words))})(\W|_|$)")
        return [file for file in files if pattern.search(get_relative_name(file, path))]

    files = find_files(path)
    if path.is_file():
        return files
    if name is not None:
        files = select([name], files) or files
    found = select([split], files) or select(HELD_OUT if split in HELD_OUT else [split], files)
    others = select(["train", "test", *HELD_OUT], files)
    return found or [file for file in files if file not in others and not re.search(r"-\d+-of-\d+", file.name)]


def get_relative_name(file: Path, folder: Path) -> str:
    """Return a file's name with the folders between it and `folder`."""
    return str(file.relative_to(folder)) if file != folder else file.name


def find_commit(rows: Any) -> str | None:
    """Find the hub's commit of a data set, which `datasets` records with its downloads."""
    for url in rows.info.download_checksums or {}:
        found = re.search(r"@([0-9a-f]{40})/", url)
        if found:
            return found[1]
    # the folders of the cache are named after the commit
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)), None)


@dataclass
class Picture:
    """A row's images, read each time they are needed."""

    rows: Any  # the data set with only the column of images, or None
    number: int
    folder: Path
    background: str | None  # see `open_image`

    def read(self) -> list[Any]:
        """Read what the row has for each image: its bytes, a name, or both."""
        if self.rows is None:
            return []
        (value,) = self.rows[self.number].values()
        found = value if isinstance(value, list) else [value]
        return [one for one in found if one is not None and one != {"bytes": None, "path": None}]

    def open(self) -> list[Image.Image]:
        """Open the images as RGB. Raises InputError if one cannot be read."""
        return [self._open(value) for value in self.read()]

    def _open(self, value: Any) -> Image.Image:
        content = get_content(value)
        if isinstance(content, bytes):
            return open_image(io.BytesIO(content), background=self.background)
        if self.folder.is_dir():
            return open_inside(self.folder, content, background=self.background)
        return open_image(Path(content), background=self.background)  # in the cache of a data set of the hub

    @property
    def shown(self) -> bool:
        return bool(self.read())

    @cached_property
    def size(self) -> tuple[int, int]:
        return self.open()[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


def get_content(value: Any) -> bytes | str:
    """Return the contents of an image, or its name, from what a row has for it."""
    if isinstance(value, bytes | str):
        return value
    return value["path"] if value["bytes"] is None else value["bytes"]


def compute_fingerprint(values: Sequence[Any]) -> str | None:
    """Hash what images are read from, so that equal images have equal hashes; None if there are none."""
    if not values:
        return None
    digest = hashlib.sha256()
    for value in values:
        content = get_content(value)
        digest.update(content.encode() if isinstance(content, str) else content)
    return digest.hexdigest()[:16]


def draw_outline(picture: Picture, box: Sequence[float]) -> list[Image.Image]:
    """Draw a red box (left, top, width, height) on a row's image, as lmms-eval marks a region."""
    (image,) = picture.open()
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle([left, top, left + width, top + height], outline="red")
    return [image]
