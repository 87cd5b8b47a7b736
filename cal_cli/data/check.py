"""Check a data set as training will read it: every entry's format, image, tokens and boxes."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from cal_cli.data.collator import Collator
from cal_cli.data.formats import load_table
from cal_cli.data.llava_json import Source, parse_sources
from cal_cli.data.sample import Entry, open_images
from cal_cli.data.tables import Rows
from cal_cli.data.validate import find_first_answer, find_problem, normalize
from cal_cli.objective import IGNORED
from cal_cli.runtime.errors import InputError

QUANTILES = (0, 5, 50, 95, 99, 100)


@dataclass(frozen=True)
class Checked:
    """The result for one entry."""

    problem: str | None  # None for a good entry
    tokens: int = 0  # of the model's input, image tokens included
    supervised: int = 0
    kind: str = "text"  # text | image
    begins_with_answer: bool = False  # a first turn that training leaves out
    size: tuple[int, int] | None = None  # width and height in pixels of an entry's only image
    special: tuple[str, ...] = ()  # the model's special tokens, such as </s>, that are written in its texts


class EntryChecks(Dataset):
    """The checks of all entries: format, every byte of the image (at most `max_pixels`), and tokens."""

    def __init__(
        self, entries: Sequence[Any], open_image: Callable[[str, int], Image.Image], collate: Collator, max_pixels: int
    ) -> None:
        self.entries, self.open_image, self.collate, self.max_pixels = entries, open_image, collate, max_pixels

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> Checked:
        written = self.entries[index]
        entry = normalize(written)
        problem = find_problem(entry)
        if problem:
            return Checked(problem)
        kind = "image" if "image" in entry else "text"
        try:
            image = open_images(entry, self.open_image, self.max_pixels)
            batch = self.collate([{"id": entry["id"], "image": image, "conversations": entry["conversations"]}])
        except InputError as error:
            return Checked(str(error))
        labels = batch["labels"][0, 1:]
        supervised = int((labels != IGNORED).sum())
        size = image.size if isinstance(image, Image.Image) else None
        begins_with_answer = find_first_answer(written) is not None
        texts = "\n".join(turn["value"] for turn in entry["conversations"])
        tokens = self.collate.processor.tokenizer.all_special_tokens
        special = tuple(token for token in tokens if token != "<image>" and token in texts)
        return Checked(None, batch["input_ids"].shape[1], supervised, kind, begins_with_answer, size, special)


def check_entries(
    entries: Sequence[Any], source: Source | Rows, collate: Collator, max_pixels: int, workers: int
) -> Iterator[tuple[Any, Checked]]:
    """Check the entries of a source in several processes; yield each entry with its result, in order."""
    checks: Iterable[Checked] = DataLoader(
        EntryChecks(entries, source.open_image, collate, max_pixels),
        batch_size=None,
        num_workers=workers,
        multiprocessing_context="spawn" if workers else None,
    )
    return zip(entries, checks, strict=True)


def find_sources(data: dict[str, Any]) -> dict[str, Source | Rows]:
    """Find the files of a `data` node; each is named by its config key, for error messages.

    Raises InputError if it names none.
    """
    if "path" in data and not isinstance(data["path"], str):
        raise InputError(f"data.path={data['path']}: must be a text, the path of a file")
    if data["_target_"].endswith("tables.load_conversations"):
        table = load_table(data["path"], data["name"], data["split"])
        rows = Rows(table, data["path"], data["image_folder"])
        rows.as_written = True
        return {"data.path": rows}
    if "sources" in data:
        return {**parse_sources(data["sources"])}
    if "path" not in data:
        raise InputError(
            "data: has no file to check; give data=llava_json data.path=..., or another data=... with files"
        )
    return {"data.path": Source(data["path"], data.get("image_folder"))}


def classify_problem(problem: str) -> str:
    """Return the kind of a problem, without the details of its sample."""
    for mark, kind in (
        ("cannot be read as an image", "image cannot be read"),
        ("pixels, more than", "image too large"),
        ("times as long as the other", "image too thin"),
        ("is not in", "image missing"),
        ("leaves the folder", "image outside its folder"),
        ("not valid JSON", "invalid JSON"),
        ("no supervised token", "no supervised token"),
        ("cut within its image", "cut within its image"),
        ("turns must go", "turns out of order"),
        ("answer is empty", "empty answer"),
        ("where an image belongs", "place of an image not marked by <image>"),
        ("its turns contain", "<image> and images do not match"),
        ("human turns only", "<image> in an answer"),
    ):
        if mark in problem:
            return kind
    return "malformed entry"


def compute_quantiles(values: Sequence[int]) -> dict[str, float]:
    """Compute quantiles and mean of token counts; empty for no values."""
    if not values:
        return {}
    quantiles = np.percentile(values, QUANTILES)
    return {f"p{share}": float(value) for share, value in zip(QUANTILES, quantiles, strict=True)} | {
        "mean": float(np.mean(values))
    }


NUMBER = r"(?:0(?:\.\d+)?|1(?:\.0+)?|\.\d+)"
BOX = re.compile(rf"\[\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*,\s*({NUMBER})\s*\]")


def convert_boxes(entry: Entry, size: tuple[int, int]) -> Entry:
    """Return an entry whose boxes refer to its image instead of the padded square.

    A box is `[left, top, right, bottom]`, four numbers from 0 to 1 in brackets, of which left is at most right and top
    at most bottom. Its numbers are rounded to as many decimals as the box had, at least two.

    Args:
        entry: an entry with one image.
        size: width and height of the image in pixels.
    """
    turns = [{**turn, "value": replace_boxes(turn["value"], size, fit_to_image)} for turn in entry["conversations"]]
    return {**entry, "conversations": turns}


def replace_boxes(text: str, size: tuple[int, int], convert: Callable) -> str:
    """Replace each box of a text by `convert(box, size)`; see `convert_boxes`."""

    def rewrite(match: re.Match) -> str:
        written = match.groups()
        left, top, right, bottom = box = [float(number) for number in written]
        if left > right or top > bottom:
            return match.group()
        decimals = max(2, *(len(number.partition(".")[2]) for number in written))
        return "[" + ", ".join(str(round(number, decimals)) for number in convert(box, size)) + "]"

    return BOX.sub(rewrite, text)


def fit_to_image(box: list[float], size: tuple[int, int]) -> list[float]:
    """Convert a box of the padded square to one of the image; parts in the padding are cut off."""
    return [
        min(max((edge * max(size) - margin) / length, 0.0), 1.0)
        for edge, margin, length in zip(box, find_margins(size) * 2, size * 2, strict=True)
    ]


def find_margins(size: tuple[int, int]) -> tuple[int, int]:
    """Return the padding left of an image and above it, in pixels, as LLaVA pads it: half of the difference."""
    width, height = size
    return (max(size) - width) // 2, (max(size) - height) // 2
