"""Conversations in any format that `datasets` reads: Parquet, tar shards, JSON lines, and data sets of the hub.

The rows stay on disk, memory-mapped, so a data set may be larger than memory, of which it takes a few bytes for each
row. Images are opened when their sample is read.
"""

import copy
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image

from cal_cli.data.formats import IMAGE_SUFFIX, TALKS, describe_split, get_folder, load_table
from cal_cli.data.images import MAX_PIXELS, check_background, find_file_problem, open_content
from cal_cli.data.messages import CAPTIONS, MESSAGE_KEYS, find_message_images, is_talk, make_turns, read_carried, unwrap
from cal_cli.data.sample import ANNOTATIONS, LOSS_WEIGHTS, Bad, Conversations, Entry, LazyEntries, get_image_names
from cal_cli.data.validate import MEDIA_KEY, find_problem, get_id, make_bad_error, mark_images, normalize, parse_line
from cal_cli.runtime.errors import InputError

IMAGES = ("image", "images")  # columns of images, beside those of tar shards, which are named by their format
IMAGE_NAME = re.compile(r"data:image/.*|.*\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?.*)?", re.IGNORECASE | re.DOTALL)
READ_AT_ONCE = 1000  # rows


def load_conversations(
    path: str,
    name: str | None = None,
    split: str = "train",
    image_folder: str | None = None,
    rows: str | None = None,
    weights: str | None = None,
    max_bad_fraction: float = 0.001,
    background: str | None = "white",
    icc: bool | None = None,
) -> Conversations:
    """Read a data set with a column of conversations and, unless it is text only, one of images.

    Args:
        path: a file or a folder of `.parquet`, `.tar` (WebDataset shards), `.jsonl` or `.arrow` files, or a hub id.
        name: the configuration, if there are several.
        split: such as `train` or `train[:1000]`; of a folder those files are read whose names have it, or all if none
            has a split.
        image_folder: folder of the images, if their column holds file names; None means that of `path`.
        rows: a `rows.json` of `cal data-check`, with the numbers of the rows to use; None means all.
        weights: a `weights.parquet` of `cal data-audit clean=weigh`, with `loss_weights` for each row; None means none.
        max_bad_fraction: largest share of bad rows, which are left out.
        background, icc: see `open_image`.

    The conversations are LLaVA's (`conversations`), chat messages (`messages`), question and answer pairs (`texts`, as
    in the Cauldron), a caption (`caption`, `txt`, `text`), or a JSON object with one of these (`json`, in tar shards).
    An image whose place is not marked comes before the first question. Without a column of images, chat messages may
    carry them, as data URLs or names of files (OpenAI's `image_url`). Columns `loss_weights`, `family` and
    `correlated` are as in entries, see `cal_cli.data.sample`.

    Raises InputError if the data set cannot be loaded or has no such columns, or too many rows are bad.
    """
    if not 0 <= max_bad_fraction < 1:
        raise InputError(f"data.max_bad_fraction={max_bad_fraction}: allowed is a share from 0 to below 1")
    check_background(background, "data.background")
    read = Rows(load_table(path, name, split), path, image_folder, background, icc)
    if weights is not None:
        read.weights = read_weights(weights, len(read))
    if rows is not None:
        read = read.select(read_row_numbers(rows, len(read)))
    good, bad, missing, absent = check_rows(read)
    if len(bad) > max_bad_fraction * len(read):
        raise make_bad_error(f"data.path={path}: {bad[0].id}: {bad[0].problem}", len(bad))
    notes = [*read.describe_images(missing), *describe_split(path, name, split)]
    if absent:
        notes.append(f"{len(absent)} of {len(read)} rows cannot be used, the first is {absent[0]}")
    data = Conversations(read.select(good) if bad else read, read.open_image, bad, max_bad_fraction)
    folder = read.folder if read.by_name else None
    named = [f"data.path={path}: {note}" for note in notes]
    return data.replace(image_folder=folder, identify_image=read.identify_image, notes=named)


class Rows(LazyEntries):
    """The rows of a data set as LLaVA entries; each is made when it is read.

    Args:
        source: the data set.
        path: its name, for messages and for `image_folder`.
        image_folder: see `load_conversations`.
        background, icc: see `open_image`.

    Attributes:
        kept: the numbers of the selected rows, int64; at first all rows.
        weights: `loss_weights` of each row of the source, instead of its own; None means these.
        unmarked: whether the text of a row that was read has an image but no mark of its place.
        unread_keys: keys of messages, in rows that were read, that have a value and no meaning here.
        as_written: leave the entries as the data set has them; else they are normalised, see `normalize`.

    Raises InputError if there is no column of conversations.
    """

    def __init__(
        self,
        source: Any,
        path: str,
        image_folder: str | None,
        background: str | None = "white",
        icc: bool | None = None,
    ) -> None:
        self.source, self.path, self.as_written = source, path, False
        self.weights: pa.ChunkedArray | None = None
        self.background, self.icc = background, icc
        talks = [column for column in TALKS if column in source.column_names]
        if not talks:
            raise InputError(
                f"data.path={path}: has no column of conversations: it has {', '.join(source.column_names)}, but one "
                f"of {', '.join(TALKS)} is needed"
            )
        self.talk, self.other_talks = talks[0], talks[1:]
        if self.other_talks and self.talk == "json" and not is_talk(source[:1]["json"][0]):  # metadata beside a caption
            self.talk, *self.other_talks = [*self.other_talks, "json"]
        self.folder = Path(image_folder) if image_folder is not None else get_folder(path)
        try:
            self.image_columns, self.unread = find_image_columns(source)
            columns = [read_column(source, name) for name in self.image_columns]
            for name, column in zip(self.image_columns, columns, strict=True):
                if not holds_images(column.type, named=True):
                    raise InputError(f"its column {name} holds {column.type}, not images: give bytes or names of files")
        except InputError as error:
            raise InputError(f"data.path={path}: {error}") from error
        self.by_name = bool(columns) and all(is_text(column.type) for column in columns)
        self.counts = np.stack([np.zeros(len(source), dtype=np.int64), *map(count_images, columns)])
        self.images, self.chosen = self.counts.max(axis=0), self.counts.argmax(axis=0) - 1  # the column of each row
        self.within = np.stack([np.zeros(len(source), dtype=bool), *map(find_within, columns)])  # not files of a name
        self.unmarked, self.unread_keys = False, set[str]()
        names = [self.talk, *(column for column in ("id", "__key__", *ANNOTATIONS) if column in source.column_names)]
        self.words = source.select_columns([*names, *(self.image_columns if self.by_name else ())])
        self.kept = np.arange(len(source))

    def select(self, numbers: Sequence[int]) -> "Rows":
        """Return the same data set with fewer rows."""
        fewer = copy.copy(self)
        fewer.kept = np.array(numbers, dtype=np.int64)
        return fewer

    def __len__(self) -> int:
        return len(self.kept)

    def read(self, index: int) -> Entry:
        number = int(self.kept[index])
        return self._make_entry(number, self.words[number])

    def __iter__(self) -> Iterator[Entry]:
        for start in range(0, len(self), READ_AT_ONCE):
            chosen = self.kept[start : start + READ_AT_ONCE]
            columns = self.words[chosen]
            for offset, index in enumerate(chosen):
                yield self._make_entry(int(index), {name: values[offset] for name, values in columns.items()})

    def _make_entry(self, index: int, row: dict[str, Any]) -> Entry:
        given = (row.get(name) for name in ("id", "__key__"))
        identity = next((value for value in given if value not in (None, "")), f"row {index}")
        within = row[self.talk]
        within = parse_line(within) if self.talk == "json" and isinstance(within, str) else within
        talk = unwrap({self.talk: within})
        carried = find_message_images(talk)
        for turn in talk if isinstance(talk, list) else ():
            keys = [key for key in turn if turn[key] not in (None, "", [])] if isinstance(turn, dict) else []
            self.unread_keys.update(key for key in keys if key not in MESSAGE_KEYS)
        images = int(self.images[index]) or len(carried)
        entry: Entry = {"id": str(identity), "conversations": make_turns(talk)}
        self.unmarked |= mark_images(entry["conversations"], images)
        for name in ANNOTATIONS:
            value = row.get(name)
            if value is None and isinstance(within, dict):
                value = within.get(name)
            if name == LOSS_WEIGHTS and self.weights is not None:
                value = self.weights[index].as_py()
            if value is not None:
                entry[name] = value
        if images > 1:
            entry["image"] = [f"{index:08d}-{number}.png" for number in range(images)]
        elif images:
            named = self.by_name and self.images[index]
            entry["image"] = row[self.image_columns[self.chosen[index]]] if named else f"{index:08d}.png"
        if self.talk == "json" and not is_talk(within):
            entry["problem"] = f"its json has none of {', '.join(TALKS)}"
        if isinstance(within, ValueError):
            entry["problem"] = f"its json is not valid ({within})"
        if self.talk in CAPTIONS and not isinstance(within, str):
            entry["problem"] = f"its {self.talk} must be a text, not {within!r:.80}"
        if carried and (self.images[index] or self.by_name):
            column = self.image_columns[self.chosen[index]]
            entry["problem"] = f"its messages carry images, and so does the column {column}: give one of them"
        return entry if self.as_written else normalize(entry)

    def describe_images(self, missing: Sequence[int]) -> list[str]:
        """Describe images that are not read, and rows that should have one; `missing` are those without an image.

        A row is text only on purpose if other rows mark the places of their images. A caption needs an image.
        """
        notes = []
        doubled = int(((self.counts > 0).sum(axis=0) > 1).sum())
        if doubled:
            notes.append(
                f"{doubled} rows have images in several of the columns {', '.join(self.image_columns)}: one is read"
            )
        for column in filter(MEDIA_KEY.fullmatch, self.source.column_names):
            notes.append(f"the column {column} is not read: only images are")
        if self.other_talks:
            notes.append(f"the texts of {', '.join(self.other_talks)} are not read, those of {self.talk} are")
        if self.unread_keys:
            notes.append(f"messages have {', '.join(sorted(self.unread_keys))}, which are not read")
        if self.unread:
            notes.append(f"the images of {', '.join(self.unread)} are not read, those of {self.image_columns[0]} are")
        if missing and (self.unmarked or self.talk in CAPTIONS):
            notes.append(
                f"{len(missing)} of {len(self)} rows have no image and are read as text only, the first of them row "
                f"{missing[0]}: leave them out if they should show one"
            )
        return notes

    def open_image(self, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Open an image by the name that an entry has for it; see `cal_cli.data.images.open_image`."""
        return open_content(self._find_image(name), self.folder, max_pixels, self.background, self.icc)

    def find_image_problem(self, number: int, entry: Entry) -> str | None:
        """Describe why an image that a row names, or carries in its messages, is not there; None if it is."""
        if self.within[self.chosen[number] + 1, number]:
            return None
        for name in get_image_names(entry):
            try:
                content = self._find_image(name)
            except InputError as error:
                return str(error)
            if isinstance(content, str) and (problem := find_file_problem(content, self.folder)):
                return problem
        return None

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
        if not self.images[int(row)]:
            carried = find_message_images(unwrap({self.talk: self.words[int(row)][self.talk]}))
            return read_carried(carried[int(number or 0)])
        image = self.source[int(row)][self.image_columns[self.chosen[int(row)]]]
        image = image[int(number or 0)] if isinstance(image, list) else image
        if isinstance(image, bytes | str):
            return image
        if image is None or not (image["bytes"] or image["path"]):
            raise InputError("its image is missing: it has neither bytes nor a path")
        if image["bytes"]:
            return image["bytes"]
        return image["path"] if Path(self.path).exists() else Path(image["path"])


def check_rows(read: Rows) -> tuple[list[int], list[Bad], list[int], list[str]]:
    """Return the numbers of good rows, the bad rows, the numbers without an image, and problems of absent images."""
    good: list[int] = []
    bad: list[Bad] = []
    missing: list[int] = []
    absent: list[str] = []
    for number, entry in zip(read.kept.tolist(), read, strict=True):
        if "image" not in entry:
            missing.append(number)
        problem = find_problem(entry)
        if problem:
            bad.append(Bad(get_id(entry), problem))
            continue
        good.append(number)
        if problem := read.find_image_problem(number, entry):
            absent.append(f"row {number}: {problem}")
    return good, bad, missing, absent


def read_weights(file: str, rows: int) -> pa.ChunkedArray:
    """Read the `loss_weights` of each row from a file. Raises InputError if they are not of so many rows."""
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"data.weights={file}: cannot be read; cal data-audit clean=weigh writes one") from error
    if table.column_names != [LOSS_WEIGHTS] or len(table) != rows:
        raise InputError(f"data.weights={file}: must have {LOSS_WEIGHTS} for {rows} rows; is it of other data?")
    return table[LOSS_WEIGHTS]


def read_row_numbers(file: str, rows: int) -> list[int]:
    """Read the numbers of rows that a file lists. Raises InputError if it has other numbers."""
    try:
        numbers = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"data.rows={file}: cannot be read ({error}); give a rows.json of cal data-check") from error
    if not isinstance(numbers, list) or not all(type(number) is int and 0 <= number < rows for number in numbers):
        raise InputError(f"data.rows={file}: must list numbers from 0 to {rows - 1}; was it written for other data?")
    return numbers


def find_image_columns(source: Any) -> tuple[list[str], list[str]]:
    """Find the columns of a data set that are read as images, and those that hold images and are not read.

    Columns named `image`, `images` or by an image format, as in tar shards, are read; else the only one with images.

    Raises InputError if there are several others, or none but a column of text that names images.
    """
    types = {field.name: field.type for field in source.data.schema}
    named = [name for name in types if name.lower() in IMAGES or IMAGE_SUFFIX.fullmatch(name.lower())]
    typed = [name for name, kind in types.items() if name not in named and holds_images(kind)]
    if named or len(typed) == 1:
        return named or typed, typed if named else []
    if typed:
        raise InputError(f"its columns {', '.join(typed)} all hold images: rename the one to use to image")
    for name, values in source[:READ_AT_ONCE].items():
        value = next(filter(None, values), None)
        if name not in TALKS and isinstance(value, str) and IMAGE_NAME.fullmatch(value):
            raise InputError(f"its column {name} names images ({value:.80}) and is not read: rename it to image")
    return [], []


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of a type are texts."""
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def holds_images(kind: pa.DataType, named: bool = False) -> bool:
    """Return whether values of a type may be images, or lists of them; also names of images if `named`."""
    kind = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    if named and (is_text(kind) or pa.types.is_null(kind)):
        return True
    fields = {kind.field(number).name for number in range(kind.num_fields)} if pa.types.is_struct(kind) else set()
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or {"bytes", "path"} <= fields


def read_column(source: Any, name: str) -> pa.ChunkedArray:
    """Return a column as Arrow values; those of JSON, which are encoded, are decoded."""
    if source.format["type"] != "custom":
        return source.data.column(name)
    try:
        return pa.chunked_array([source.select_columns([name])[:][name]])
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise InputError(f"its column {name} must hold a name, or a list of names, in each row") from error


def count_images(column: pa.ChunkedArray) -> np.ndarray:
    """Count the images of each row, int64 [rows], without reading them; empty bytes and names are none."""
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return np.asarray(pc.fill_null(pc.list_value_length(column), 0), dtype=np.int64)
    if pa.types.is_null(column.type):
        return np.zeros(len(column), dtype=np.int64)
    if pa.types.is_struct(column.type):
        return np.maximum(*(count_images(pc.struct_field(column, name)) for name in ("bytes", "path")))
    return np.asarray(pc.fill_null(pc.greater(pc.binary_length(column), 0), False)).astype(np.int64)


def find_within(column: pa.ChunkedArray) -> np.ndarray:
    """Find the rows of a column whose images are in it, and not files that it names, bool [rows]."""
    if pa.types.is_struct(column.type):
        column = pc.struct_field(column, "bytes")
    kind = getattr(column.type, "value_type", column.type)  # of lists
    return np.zeros(len(column), dtype=bool) if is_text(kind) else count_images(column) > 0
