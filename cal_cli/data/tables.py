"""Conversations in any format that `datasets` reads: Parquet, tar shards, JSON lines, and data sets of the hub.

The rows stay on disk, memory-mapped, so a data set may be larger than memory, of which it takes a few bytes for each
row. Images are opened when their sample is read.
"""

import base64
import binascii
import copy
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from cal_cli.data.images import MAX_PIXELS, check_background, open_content
from cal_cli.data.sample import ANNOTATIONS, Bad, Conversations, Entry
from cal_cli.data.validate import find_problem, get_id, make_bad_fraction_error, normalize, parse_line
from cal_cli.runtime.errors import InputError

BUILDERS = {".parquet": "parquet", ".tar": "webdataset", ".jsonl": "json", ".json": "json", ".arrow": "arrow"}
IMAGES = ("image", "images", "jpg", "jpeg", "png", "webp")
READ_AT_ONCE = 1000  # rows


def load_conversations(
    path: str,
    name: str | None = None,
    split: str = "train",
    image_folder: str | None = None,
    rows: str | None = None,
    max_bad_fraction: float = 0.001,
    background: str | None = "white",
) -> Conversations:
    """Read a data set with a column of conversations and, unless it is text only, one of images.

    Args:
        path: a file or a folder of `.parquet`, `.tar` (WebDataset shards), `.jsonl` or `.arrow` files, or a hub id.
        name: the configuration, for a hub data set that has several.
        split: of a hub data set, such as `train` or `train[:1000]`.
        image_folder: folder of the images, if their column holds file names; None means that of `path`.
        rows: a `rows.json` of `cal data-check`, with the numbers of the rows to use; None means all.
        max_bad_fraction: largest share of bad rows, which are left out.
        background: see `open_image`.

    The conversations are LLaVA's (`conversations`), chat messages (`messages`), question and answer pairs (`texts`, as
    in the Cauldron), a caption (`caption`, `txt`, `text`), or a JSON object with one of these (`json`, in tar shards).
    An image whose place is not marked comes before the first question. Without a column of images, chat messages may
    carry them, as data URLs or names of files (OpenAI's `image_url`). Columns `loss_weights`, `family` and
    `correlated` are as in entries, see `cal_cli.data.sample`.

    Raises:
        InputError: the data set cannot be loaded or has no such columns, or too many rows are bad.
    """
    if not 0 <= max_bad_fraction < 1:
        raise InputError(f"data.max_bad_fraction={max_bad_fraction}: allowed is a share from 0 to below 1")
    check_background(background, "data.background")
    read = Rows(load_table(path, name, split), path, image_folder, background)
    if rows is not None:
        read = read.select(read_row_numbers(rows, len(read)))
    good: list[int] = []
    bad: list[Bad] = []
    for number, entry in zip(read.kept.tolist(), read, strict=True):
        problem = find_problem(entry)
        if problem:
            bad.append(Bad(get_id(entry), problem))
        else:
            good.append(number)
    if len(bad) > max_bad_fraction * len(read):
        raise make_bad_fraction_error(f"data.path={path}: row {bad[0].id}: {bad[0].problem}", len(bad))
    data = Conversations(read.select(good) if bad else read, read.open_image, bad, max_bad_fraction)
    return data.replace(image_folder=read.folder if read.by_name else None, identify_image=read.identify_image)


class Rows(Sequence[Entry]):
    """The rows of a data set as LLaVA entries; each is made when it is read.

    Args:
        source: the data set.
        path: its name, for messages and for `image_folder`.
        image_folder: see `load_conversations`.
        background: see `open_image`.

    Attributes:
        kept: the numbers of the selected rows, int64; at first all rows.
        as_written: leave the entries as the data set has them; else they are normalised, see `normalize`.

    Raises:
        InputError: there is no column of conversations.
    """

    def __init__(self, source: Any, path: str, image_folder: str | None, background: str | None = "white") -> None:
        self.source, self.path, self.background, self.as_written = source, path, background, False
        talks = [column for column in TALKS if column in source.column_names]
        if not talks:
            raise InputError(
                f"data.path={path}: has no column of conversations: it has {', '.join(source.column_names)}, but one "
                f"of {', '.join(TALKS)} is needed"
            )
        self.talk = talks[0]
        pictures = [column for column in IMAGES if column in source.column_names]
        self.pictures = pictures[0] if pictures else None
        self.folder = Path(image_folder) if image_folder is not None else get_folder(path)
        names = [self.talk, *(column for column in ("id", "__key__", *ANNOTATIONS) if column in source.column_names)]
        self.images, self.by_name = np.zeros(len(source), dtype=np.int64), False
        if self.pictures is not None:
            column = source.data.column(self.pictures)
            self.images = count_images(column)
            self.by_name = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
            names += [self.pictures] if self.by_name else []
        self.words = source.select_columns(names)
        self.kept = np.arange(len(source))

    def select(self, numbers: Sequence[int]) -> "Rows":
        """Return the same data set with fewer rows."""
        fewer = copy.copy(self)
        fewer.kept = np.array(numbers, dtype=np.int64)
        return fewer

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = int(self.kept[place])
        return self._make_entry(index, self.words[index])

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), READ_AT_ONCE):
            chosen = self.kept[start : start + READ_AT_ONCE]
            columns = self.words[chosen]
            for offset, index in enumerate(chosen):
                yield self._make_entry(int(index), {name: values[offset] for name, values in columns.items()})

    def _make_entry(self, index: int, row: dict[str, Any]) -> Entry:
        identity = row.get("id") or row.get("__key__") or f"row {index}"
        talk = unwrap({self.talk: row[self.talk]})
        carried = find_message_images(talk)
        images = int(self.images[index]) if self.pictures is not None else len(carried)
        entry: Entry = {"id": str(identity), "conversations": make_turns(talk, images)}
        for name in ANNOTATIONS:
            value = row.get(name)
            if value is None and isinstance(row[self.talk], dict):
                value = row[self.talk].get(name)
            if value is not None:
                entry[name] = value
        if images > 1:
            entry["image"] = [f"{index:08d}-{number}.png" for number in range(images)]
        elif images:
            entry["image"] = row[str(self.pictures)] if self.by_name else f"{index:08d}.png"
        if carried and self.pictures is not None:
            entry["problem"] = f"its messages carry images, and so does the column {self.pictures}: give one of them"
        return entry if self.as_written else normalize(entry)

    def open_image(self, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Open an image by the name that an entry has for it; see `cal_cli.data.images.open_image`."""
        return open_content(self._find_image(name), self.folder, max_pixels, self.background)

    def identify_image(self, name: str) -> str:
        """Return the same text for images with the same contents, by their names in entries."""
        try:
            content = self._find_image(name)
        except InputError:
            return name
        return hashlib.sha256(content).hexdigest() if isinstance(content, bytes) else str(content)

    def _find_image(self, name: str) -> bytes | str | Path:
        """Return the contents of an image, its name in the image folder, or its path in the cache of `datasets`."""
        if self.by_name:
            return name
        row, _, number = name.removesuffix(".png").partition("-")
        if self.pictures is None:
            carried = find_message_images(unwrap({self.talk: self.words[int(row)][self.talk]}))
            return read_carried(carried[int(number or 0)])
        picture = self.source[int(row)][self.pictures]
        picture = picture[int(number or 0)] if isinstance(picture, list) else picture
        if isinstance(picture, bytes | str):
            return picture
        if picture is None or picture["bytes"] is picture["path"]:
            raise InputError("its image is missing: it has neither bytes nor a path")
        if picture["bytes"] is not None:
            return picture["bytes"]
        return picture["path"] if Path(self.path).exists() else Path(picture["path"])


def read_row_numbers(file: str, rows: int) -> list[int]:
    """Read the numbers of rows that a file lists. Raises InputError if it has other numbers."""
    try:
        numbers = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"data.rows={file}: cannot be read ({error}); give a rows.json of cal data-check") from error
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < rows for number in numbers):
        raise InputError(f"data.rows={file}: must list numbers from 0 to {rows - 1}; was it written for other data?")
    return numbers


def load_table(
    path: str,
    name: str | None,
    split: str,
    files: list[Path] | None = None,
    revision: str | None = None,
    key: str = "data",
) -> Any:
    """Load a data set without decoding its images.

    Args:
        path: a file, a folder or a hub id.
        name: the configuration, on the hub.
        split: on the hub.
        files: the files to read, of a folder; None means all.
        revision: on the hub.
        key: config key, for messages.

    Raises:
        InputError: it cannot be loaded.
    """
    import datasets  # takes seconds, so only where it is needed

    files = find_files(Path(path)) if files is None else files
    if not files and Path(path).exists():
        raise InputError(f"{key}.path={path}: contains no {', '.join(BUILDERS)} file")
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    verbosity = datasets.logging.get_verbosity()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # a failure is reported once, below
    try:
        if files:
            # a single split: local files have no named splits
            found = datasets.load_dataset(BUILDERS[files[0].suffix], data_files=[str(file) for file in files])["train"]
        else:
            found = datasets.load_dataset(path, name, split=split, revision=revision)
    except Exception as error:  # any failure of a builder
        cause = str(error.__cause__ or error).strip().splitlines()
        problem = cause[0] if cause else type(error).__name__
        if files:
            raise InputError(f"{key}.path={path}: cannot be read: {problem}") from error
        raise InputError(
            f"{key}.path={path}: neither a file or folder nor a data set of the hub or its cache ({problem}): run "
            f"`hf download --repo-type dataset {path} --local-dir {Path(path).name}` on a machine with network access, "
            f"and give {key}.path={Path(path).name}, a folder with .parquet files, or .json files and their images"
        ) from error
    finally:
        datasets.logging.set_verbosity(verbosity)
    plain = datasets.Image(decode=False)
    for column, feature in found.features.items():
        if isinstance(feature, datasets.Image):
            found = found.cast_column(column, plain)
        elif isinstance(getattr(feature, "feature", None), datasets.Image):
            found = found.cast_column(column, datasets.List(plain))
    return found


def find_files(path: Path) -> list[Path]:
    """Find the data files of a path, all of one kind, sorted by name."""
    if path.is_file():
        return [path] if path.suffix in BUILDERS else []
    for suffix in BUILDERS:
        found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else []
        if found:
            return found
    return []


def get_folder(path: str) -> Path:
    """Return the folder that image names are relative to by default."""
    return Path(path) if Path(path).is_dir() else Path(path).parent


def count_images(column: pa.ChunkedArray) -> np.ndarray:
    """Count the images of each row, int64 [rows], without reading them."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)
    if pa.types.is_struct(column.type):
        fields = [pc.is_valid(pc.struct_field(column, name)) for name in ("bytes", "path")]
        return np.asarray(pc.and_(pc.is_valid(column), pc.or_(*fields))).astype(np.int64)
    return np.asarray(pc.is_valid(column)).astype(np.int64)


TALKS = (
    "conversations",
    "messages",
    "texts",
    "json",
    "caption",
    "txt",
    "text",
)  # columns of conversations; the first that exists is used
STRUCTURED = ("conversations", "messages", "texts", "json")  # text in them is JSON
IMAGE_PARTS = ("image", "image_url")  # types of a message's parts
ROLES = {"user": "human", "assistant": "gpt", "system": "system"}


def unwrap(talk: Any) -> Any:
    """Return the conversation of a row, or of the JSON object of a tar shard; JSON text is parsed."""
    while isinstance(talk, dict):
        found = [name for name in TALKS if talk.get(name) is not None]
        if not found:
            break
        value = talk[found[0]]
        talk = parse_line(value) if found[0] in STRUCTURED and isinstance(value, str) else value
    return talk


def make_turns(talk: Any, images: int) -> Any:
    """Convert a conversation from any format of `load_conversations` to LLaVA's; return anything else unchanged.

    If no turn marks the place of the images, they come first.
    """
    if isinstance(talk, str):
        turns = [{"from": "human", "value": ""}, {"from": "gpt", "value": talk}]
    elif isinstance(talk, list) and talk and all(isinstance(turn, dict) for turn in talk):
        if "role" in talk[0]:
            turns = [
                {"from": ROLES.get(str(turn.get("role")), turn.get("role")), "value": join_text(turn.get("content"))}
                for turn in talk
            ]
        elif "user" in talk[0]:
            pairs = [(("human", turn.get("user")), ("gpt", turn.get("assistant"))) for turn in talk]
            turns = [{"from": speaker, "value": value} for pair in pairs for speaker, value in pair]
        else:
            turns = [{"from": turn.get("from"), "value": turn.get("value")} for turn in talk]
    else:
        return talk
    asked = [turn for turn in turns if turn["from"] == "human"]
    marked = any("<image>" in str(turn["value"]) for turn in turns)
    if images and asked and not marked and isinstance(asked[0]["value"], str):
        asked[0]["value"] = f"{'<image>' * images}\n{asked[0]['value']}".rstrip("\n")
    return turns


def join_text(content: Any) -> Any:
    """Return a message's text, with `<image>` for each image; return content of any other kind unchanged."""
    known = isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") in ("text", *IMAGE_PARTS) for part in content
    )
    if not known:
        return content
    return "".join("<image>" if part["type"] in IMAGE_PARTS else part.get("text") or "" for part in content)


def find_message_images(talk: Any) -> list[Any]:
    """Find the images that messages carry themselves, as in OpenAI's format, in their order.

    Returns:
        For each image its contents, a data URL, a path or a URL; empty if the messages only mark places of images.
    """
    messages = talk if isinstance(talk, list) else []
    contents = [message.get("content") for message in messages if isinstance(message, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content if isinstance(part, dict)]
    found = [find_carried(part) for part in parts if part.get("type") in IMAGE_PARTS]
    return found if any(found) else []


def find_carried(part: dict) -> Any:
    """Return what a message's image part carries; None if it only marks a place."""
    for key in ("image_url", "image", "url", "path"):
        value = part.get(key)
        if isinstance(value, dict):
            value = next((value[inner] for inner in ("url", "bytes", "path") if value.get(inner)), None)
        if value:
            return value
    return None


def read_carried(carried: Any) -> bytes | str:
    """Return the contents of an image that a message carries, or the name of its file.

    Raises InputError for an address on the web, a data URL that cannot be decoded, or anything else.
    """
    if isinstance(carried, bytes):
        return carried
    if not isinstance(carried, str):
        raise InputError(f"its image is {carried!r:.80}, not a data URL or the name of a file")
    if carried.startswith("data:"):
        try:
            return base64.b64decode(carried.partition(",")[2], validate=True)
        except (binascii.Error, ValueError) as error:
            raise InputError(f"its image is a data URL that is not base64 ({error})") from error
    if "://" in carried and not carried.startswith("file://"):
        raise InputError(f"its image is at {carried:.80}: only data URLs and files are read; download it first")
    return carried.removeprefix("file://")
