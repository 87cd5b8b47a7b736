"""Read and write LLaVA's conversation JSON, with images in a folder: the path that a user's own data takes."""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from cal_cli.data.conversations import Conversations, Entry
from cal_cli.errors import InputError
from cal_cli.files import write_whole

SPEAKERS = ("human", "gpt", "system")


def llava_json(path: str, image_folder: str | None = None) -> Conversations:
    """Read a data set: a JSON list of entries, or one entry a line (`.jsonl`), each checked before training starts.

    Args:
        path: the file.
        image_folder: the folder that the entries' `image` names are relative to; by default that of the file.

    Raises:
        InputError: the file or an image is missing, or an entry is malformed; the message names the entry.
    """
    entries, folder = read_checked(path, image_folder, "data.path")
    return Conversations(entries, lambda name: open_image(folder / name))


def llava_mixture(sources: list[Any], seed: int = 0) -> Conversations:
    """Read several data sets as one, in their order.

    Args:
        sources: each `{path, image_folder, weight}`, the two latter optional. A weight is the share of the source that
            an epoch sees: 0.5 takes a random half, 2 takes each sample twice. Images are named by their whole path.
        seed: of the random shares.

    Raises:
        InputError: as `llava_json`, or a weight that is not above 0.
    """
    if not sources:
        raise InputError("data.sources is empty: give at least one {path: ..., image_folder: ...}")
    entries: list[Entry] = []
    for number, source in enumerate(sources):
        key = f"data.sources[{number}]"
        unknown = sorted(set(source) - {"path", "image_folder", "weight"})
        if unknown or "path" not in source:
            wrong = f"has no {unknown[0]!r}" if unknown else "needs a path"
            raise InputError(f"{key}: {wrong}; a source takes path, image_folder and weight")
        weight = source.get("weight", 1.0)
        if not isinstance(weight, int | float) or weight <= 0:
            raise InputError(f"{key}.weight={weight}: must be a number above 0")
        found, folder = read_checked(source["path"], source.get("image_folder"), f"{key}.path")
        found = [{**e, "image": str(folder / e["image"])} if "image" in e else e for e in found]
        whole, part = divmod(round(weight * len(found)), len(found))
        entries += found * whole
        entries += [found[i] for i in sorted(random.Random(f"{number}-{seed}").sample(range(len(found)), part))]
    return Conversations(entries, lambda name: open_image(Path(name)))


def read_checked(path: str, image_folder: str | None, key: str) -> tuple[list[Entry], Path]:
    """Entries, each of them checked, and the folder of their images; `key` is the file's in error messages."""
    source = Path(path)
    if not source.is_file():
        raise InputError(f"{key}={path}: there is no such file; give the path of a LLaVA conversation JSON or JSONL")
    try:
        text = source.read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if line.strip()] if source.suffix == ".jsonl" else None
        entries = json.loads(text) if lines is None else [json.loads(line) for line in lines]
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{key}={path}: not valid JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{key}={path}: must hold a list with at least one sample")
    folder = source.parent if image_folder is None else Path(image_folder)
    if not folder.is_dir():
        raise InputError(f"{key.removesuffix('path')}image_folder={folder}: there is no such folder")
    present: set[str] = set()
    for number, entry in enumerate(entries):
        problem = problem_of(entry)
        if not problem and "image" in entry and entry["image"] not in present:
            if (folder / entry["image"]).is_file():
                present.add(entry["image"])
            else:
                problem = f"its image {entry['image']} is not in {folder}"
        if problem:
            identity = repr(entry["id"]) if isinstance(entry, dict) and "id" in entry else "without an id"
            raise InputError(f"{key}={path}: entry {number} ({identity}): {problem}")
    return entries, folder


def problem_of(entry: object) -> str | None:
    """What keeps an entry from being LLaVA conversation JSON, in words; None if nothing does."""
    if not isinstance(entry, dict):
        return f"must be an object, not {type(entry).__name__}"
    missing = [key for key in ("id", "conversations") if key not in entry]
    if missing:
        return f"has no {missing[0]!r}"
    if "image" in entry and not isinstance(entry["image"], str):
        return f"'image' must be one file name, not {entry['image']!r}; leave the key out for text alone"
    turns = entry["conversations"]
    if not isinstance(turns, list) or not turns:
        return "'conversations' must be a list of turns, at least one of them"
    for turn in turns:
        if not isinstance(turn, dict) or not isinstance(turn.get("value"), str) or turn.get("from") not in SPEAKERS:
            return f"a turn must be {{'from': 'human' or 'gpt', 'value': text}}, not {turn!r:.80}"
    speakers = [turn["from"] for turn in turns if turn["from"] != "system"]
    if speakers != (["human", "gpt"] * len(speakers))[: len(speakers)] or len(speakers) < 2 or len(speakers) % 2:
        return f"its turns must go human, gpt, human, gpt, ..., not {', '.join(speakers)}"
    if any("<image>" in turn["value"] for turn in turns if turn["from"] != "human"):
        return "'<image>' may stand in a human turn only"
    markers, images = sum(turn["value"].count("<image>") for turn in turns), int("image" in entry)
    if markers != images:
        return f"it has {images} image but '<image>' stands in its turns {markers} times"
    return None


def open_image(path: Path) -> Image.Image:
    """Read an image file as RGB.

    Raises:
        InputError: it cannot be read as an image.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as an image ({error})") from error


def write_llava_json(entries: list[Entry], path: Path) -> str:
    """Write entries as LLaVA JSON, whole or not at all, and return the SHA-256 of the file."""
    return write_whole(path, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
