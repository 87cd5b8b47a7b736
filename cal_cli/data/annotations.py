"""What an entry may say about its answers beside their text: weights, and which words describe the picture."""

import math
from itertools import takewhile
from typing import Any

from cal_cli.data.sample import CORRELATED, LOSS_WEIGHTS, REGIONS, Entry


def find_annotation_problem(entry: Entry) -> str | None:
    """Describe what is wrong with the annotations of an entry whose turns are valid; None if nothing is."""
    answers = [turn["value"] if turn["from"] == "gpt" else "" for turn in entry["conversations"]]
    count = sum(turn["from"] == "gpt" for turn in entry["conversations"])
    return (
        find_weights_problem(entry.get(LOSS_WEIGHTS), count)
        or find_marks_problem(entry.get(CORRELATED), answers)
        or find_regions_problem(entry.get(REGIONS), answers)
    )


def find_weights_problem(weights: Any, answers: int) -> str | None:
    """Describe what is wrong with the weights of an entry's answers; None if nothing is, or there are none."""
    if weights is None:
        return None
    if not isinstance(weights, list) or len(weights) != answers:
        return f"'loss_weights' must be a list with an item for each of its {answers} answers, not {weights!r:.80}"
    for one in weights:
        for number in one if isinstance(one, list) else [one]:
            if type(number) not in (int, float) or not 0 <= number < math.inf:
                return f"'loss_weights' must hold numbers that are at least 0, or lists of them, not {number!r:.80}"
    return None


def find_marks_problem(marks: Any, answers: list[str]) -> str | None:
    """Describe what is wrong with the marks of correlated words; None if nothing is, or there are none.

    `answers` has the text of each turn, empty for those of others than `gpt`.
    """
    if marks is None:
        return None
    if not isinstance(marks, list):
        return f"'correlated' must be a list of [turn, begin, end], not {marks!r:.80}"
    for mark in marks:
        numbers = isinstance(mark, list) and len(mark) == 3 and all(type(number) is int for number in mark)
        if not numbers or not 0 <= mark[0] < len(answers) or not 0 <= mark[1] < mark[2] <= len(answers[mark[0]]):
            return f"'correlated' must hold [turn, begin, end] of characters in a turn of gpt, not {mark!r:.80}"
    return None


def find_regions_problem(regions: Any, answers: list[str]) -> str | None:
    """Describe what is wrong with the regions of words; None if nothing is, or there are none; see `sample.py`."""
    if regions is None:
        return None
    if not isinstance(regions, list):
        return f"'regions' must be a list of [turn, begin, end, left, upper, right, lower], not {regions!r:.80}"
    for region in regions:
        if not isinstance(region, list) or len(region) != 7 or find_marks_problem([region[:3]], answers):
            return (
                f"'regions' must hold a turn of gpt, two places in it, and the four edges of a box, not {region!r:.80}"
            )
        if not all(type(edge) in (int, float) and math.isfinite(edge) for edge in region[3:]):
            return f"'regions' must hold boxes of finite numbers, not {region!r:.80}"
        left, upper, right, lower = region[3:]
        if not (left < right and upper < lower):
            return f"'regions' must hold boxes whose left edge is before the right, the upper above the lower: {region}"
    return None


def drop_turn(entry: Entry, place: int) -> Entry:
    """Return an entry without its first turn of `gpt`, which only system turns precede, and without its annotations."""
    turns = entry["conversations"]
    entry = {**entry, "conversations": turns[:place] + turns[place + 1 :]}
    if isinstance(entry.get(LOSS_WEIGHTS), list):
        entry[LOSS_WEIGHTS] = entry[LOSS_WEIGHTS][1:]
    for key in (CORRELATED, REGIONS):
        marks = entry.get(key)
        # malformed marks stay as they are, and are reported when the entry is checked
        if isinstance(marks, list) and all(isinstance(mark, list) and mark and type(mark[0]) is int for mark in marks):
            entry[key] = [[mark[0] - 1, *mark[1:]] for mark in marks if mark[0] != place]
    return entry


def move_marks(marks: list[list[int]], turn: int, before: str, after: str) -> list[list[int]]:
    """Return the marks of correlated words after the text of a turn has changed in one place; those in it are lost."""
    same = count_same(before, after)
    same_end = min(count_same(before[::-1], after[::-1]), min(len(before), len(after)) - same)
    moved = []
    for number, begin, end in marks:
        if number != turn or end <= same:
            moved.append([number, begin, end])
        elif begin >= len(before) - same_end:
            shift = len(after) - len(before)
            moved.append([number, begin + shift, end + shift])
    return moved


def count_same(one: str, other: str) -> int:
    """Count the characters with which both texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))
