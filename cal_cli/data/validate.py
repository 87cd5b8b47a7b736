"""Find what is wrong with an entry of a data set: its turns, images and annotations."""

import copy
import json
import math
import re
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

from cal_cli.data.sample import CORRELATED, LOSS_WEIGHTS, REGIONS, Entry, get_image_names
from cal_cli.runtime.errors import InputError, shorten


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
    for answer in weights:
        for number in answer if isinstance(answer, list) else [answer]:
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


def count_same(first: str, second: str) -> int:
    """Count the characters with which both texts begin."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))


IMAGE_KEY = re.compile(r"image|img|picture|photo", re.IGNORECASE)  # keys of an entry that are taken for an image's
MEDIA_KEY = re.compile(r"(video|audio)s?(_path|_file|_url)?", re.IGNORECASE)  # keys of what is not read
# how other data mark the place of an image; those of `NAMED_PLACE` occur in no ordinary text
NAMED_PLACE = r"<img>[^<>]*\.\w+</img>|<image_placeholder>|<ImageHere>"
PLACE = re.compile(rf"{NAMED_PLACE}|<\s*image[\s_-]*\d*\s*>|<\|image[\w|]*\|>", re.IGNORECASE)
SPEAKERS = ("human", "gpt", "system")


def make_bad_error(first: str, count: int) -> InputError:
    """Make the error that names the first of several bad samples."""
    more = f"; {count - 1} more are bad" if count > 1 else ""
    return InputError(f"{first}{more}; cal data-check lists all bad samples and writes the others")


def parse_line(line: str) -> Any:
    """Parse a line of JSON; return the error if it is invalid."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def normalize(entry: Any) -> Any:
    """Return an entry with its id as text, and without a first turn of `gpt`, which LLaVA's loader leaves out too.

    Conversations that begin with `gpt` are those of ShareGPT, in LLaVA's instruction data. Anything that is not an
    entry is returned unchanged.
    """
    if not isinstance(entry, dict):
        return entry
    if "id" in entry and not isinstance(entry["id"], str):
        entry = {**entry, "id": str(entry["id"])}
    if "images" in entry and "image" not in entry:  # as in tables, where the place of an image need not be marked
        entry = {("image" if key == "images" else key): value for key, value in copy.deepcopy(entry).items()}
        if not entry["image"]:
            del entry["image"]
        elif isinstance(entry["image"], str | list):
            mark_images(entry.get("conversations"), len(get_image_names(entry)))
    if entry.get("image", "named") in (None, ""):  # text only, in other words
        entry = {key: value for key, value in entry.items() if key != "image"}
    place = find_first_answer(entry)
    return entry if place is None else drop_turn(entry, place)


def mark_images(turns: Any, images: int) -> bool:
    """Put `<image>` for each image before the first question if no turn marks a place; return whether it did.

    `turns` are modified. Other marks stay as they are, and are reported when the entry is checked.
    """
    valid = isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns)
    if not images or not valid or any("<image>" in str(turn.get("value")) for turn in turns):
        return False
    if find_place(turns, images):
        return False
    asked: dict = next((turn for turn in turns if turn.get("from") == "human"), {})
    if isinstance(asked.get("value"), str):
        asked["value"] = f"{'<image>' * images}\n{asked['value']}".rstrip("\n")
    return True


def find_place(turns: list[dict[str, Any]], images: int) -> str | None:
    """Find how the questions of an entry mark the place of an image, if not by `<image>`; None if they do not.

    Without an image, only marks count that no ordinary text contains.
    """
    asked = " ".join(str(turn.get("value")) for turn in turns if turn.get("from") == "human")
    place = re.search(PLACE if images else NAMED_PLACE, asked)
    return place and place[0]


def find_first_answer(entry: Any) -> int | None:
    """Return the place of a `gpt` turn that nothing but system turns precedes; None if there is none."""
    turns = entry.get("conversations") if isinstance(entry, dict) else None
    for place, turn in enumerate(turns if isinstance(turns, list) else ()):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        if speaker != "system":
            return place if speaker == "gpt" else None
    return None


def get_id(entry: object) -> str:
    """Return an entry's id as it appears in messages and files."""
    return shorten(str(entry["id"])) if isinstance(entry, dict) and "id" in entry else "without an id"


def find_problem(entry: object) -> str | None:
    """Describe why an entry is not valid LLaVA conversation JSON; None if it is."""
    if isinstance(entry, json.JSONDecodeError):
        return f"its line is not valid JSON ({entry})"
    if not isinstance(entry, dict):
        return f"must be an object, not {type(entry).__name__}"
    if "problem" in entry:  # found when the entry was made
        return entry["problem"]
    missing = [key for key in ("id", "conversations") if key not in entry]
    if missing:
        others = {"messages", "caption", "text"} & entry.keys()
        return f"has no {missing[0]!r}{'; data=table reads chat messages and captions' if others else ''}"
    unread = [key for key in entry if IMAGE_KEY.search(key) and entry[key]] if "image" not in entry else []
    if unread:
        return f"it has no 'image', but {unread[0]!r}, which is not read: rename the key to 'image'"
    if media := [key for key in entry if "image" not in entry and MEDIA_KEY.fullmatch(key) and entry[key]]:
        return f"it has {media[0]!r}, which is not read: only images are"
    named = entry.get("image", "")
    if not isinstance(named, str) and not (
        isinstance(named, list) and named and all(isinstance(n, str) for n in named)
    ):
        return (
            f"'image' must be a file name or a list of file names, not {named!r:.80}; leave the key out for text only"
        )
    turns = entry["conversations"]
    if not isinstance(turns, list) or not turns:
        return "'conversations' must be a list of at least one turn"
    for turn in turns:
        if isinstance(turn, dict) and isinstance(turn.get("value"), list):
            kinds = sorted({str(part.get("type")) if isinstance(part, dict) else repr(part) for part in turn["value"]})
            return f"a message has parts of type {', '.join(kinds):.80}; allowed are text and image"
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in SPEAKERS:
            return f"a turn must be {{'from': 'human' or 'gpt', 'value': text}}, not {turn!r:.80}"
    if not is_unicode(turn["value"] for turn in turns) or not is_unicode([str(entry["id"])]):
        return "its text is not valid Unicode: it has half of a surrogate pair"
    speakers = [turn["from"] for turn in turns if turn["from"] != "system"]
    if speakers != (["human", "gpt"] * len(speakers))[: len(speakers)] or len(speakers) < 2 or len(speakers) % 2:
        return f"its turns must go human, gpt, human, gpt, ..., not {', '.join(speakers)}"
    if any(turn["from"] == "gpt" and not turn["value"].strip() for turn in turns):
        return "its answer is empty"
    if any("<image>" in turn["value"] for turn in turns if turn["from"] != "human"):
        return "'<image>' is allowed in human turns only"
    markers, images = sum(turn["value"].count("<image>") for turn in turns), len(get_image_names(entry))
    if not markers and (other := find_place(turns, images)):
        return f"its text has {other:.80}, which is not read: write <image> where an image belongs"
    if markers != images:
        return f"it has {images} image{'s' * (images != 1)} but its turns contain '<image>' {markers} times"
    return find_annotation_problem(entry)


def is_unicode(texts: Iterable[str]) -> bool:
    """Return whether texts can be encoded, which a lone surrogate, as `"\\ud83d"` in JSON, cannot."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
