"""Boxes in texts: from fractions of the padded square, as in LLaVA's instruction data, to fractions of the image.

LLaVA-1.5 pads an image to a square, and the boxes of its instruction data (mix665k) refer to this square. A model that
sees the image itself, as LLaVA-NeXT's AnyRes does, needs boxes that refer to the image.
"""

import re
from collections.abc import Callable

from cal_cli.data.sample import Entry

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
        min(max((one * max(size) - margin) / length, 0.0), 1.0)
        for one, margin, length in zip(box, find_margins(size) * 2, size * 2, strict=True)
    ]


def fit_to_square(box: list[float], size: tuple[int, int]) -> list[float]:
    """Convert a box of the image to one of the padded square."""
    return [
        (one * length + margin) / max(size)
        for one, margin, length in zip(box, find_margins(size) * 2, size * 2, strict=True)
    ]


def find_margins(size: tuple[int, int]) -> tuple[int, int]:
    """Return the padding left of an image and above it, in pixels, as LLaVA pads it: half of the difference."""
    width, height = size
    return (max(size) - width) // 2, (max(size) - height) // 2
