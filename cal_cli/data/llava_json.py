"""Read and write LLaVA's conversation JSON, with images in a folder: the path that a user's own data takes."""

import json
import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from PIL import Image, UnidentifiedImageError

from cal_cli.data.conversations import Bad, Conversations, Entry, image_names, renamed
from cal_cli.errors import InputError
from cal_cli.files import write_whole

SPEAKERS = ("human", "gpt", "system")


def llava_json(path: str, image_folder: str | None = None, max_bad_fraction: float = 0.001) -> Conversations:
    """Read a data set: a JSON list of entries, or one entry a line (`.jsonl`), each checked before training starts.

    Args:
        path: the file.
        image_folder: the folder that the entries' `image` names are relative to; by default that of the file.
        max_bad_fraction: share of the entries that may be malformed, or lack their image, and are left out.

    Raises:
        InputError: there is no such file, or more entries are bad; the message names the first.
    """
    source = Source(path, image_folder)
    entries, bad = read_good({"data.path": source}, max_bad_fraction)
    return Conversations(entries["data.path"], partial(open_in, source.folder), bad, max_bad_fraction)


def llava_mixture(sources: list[Any], seed: int = 0, max_bad_fraction: float = 0.001) -> Conversations:
    """Read several data sets as one, in their order.

    Args:
        sources: each `{path, image_folder, weight}`, the two latter optional. A weight is the share of the source that
            an epoch sees: 0.5 takes a random half, 2 takes each sample twice. Images are named by their whole path.
        seed: of the random shares.
        max_bad_fraction: see `llava_json`.

    Raises:
        InputError: as `llava_json`, or a weight that is not above 0.
    """
    named = sources_of(sources)
    good, bad = read_good(named, max_bad_fraction)
    entries: list[Entry] = []
    for number, (key, source) in enumerate(named.items()):
        found = [renamed(entry, partial(inside, source.folder)) for entry in good[key]]
        whole, part = divmod(round(source.weight * len(found)), max(len(found), 1))
        entries += found * whole
        entries += [found[i] for i in sorted(random.Random(f"{number}-{seed}").sample(range(len(found)), part))]
    return Conversations(entries, partial(open_in, Path()), bad, max_bad_fraction)


def inside(folder: Path, name: str) -> str:
    """The path of an image of a folder."""
    return str(folder / name)


@dataclass
class Source:
    """One file of LLaVA conversations and where its images lie."""

    path: str
    image_folder: str | None = None
    weight: float = 1.0

    @property
    def folder(self) -> Path:
        """The folder that image names are relative to."""
        return Path(self.path).parent if self.image_folder is None else Path(self.image_folder)


def sources_of(sources: list[Any]) -> dict[str, Source]:
    """The sources of a mixture, by the key that names each in error messages.

    Raises:
        InputError: one is malformed.
    """
    if not sources:
        raise InputError("data.sources is empty: give at least one {path: ..., image_folder: ...}")
    named = {}
    for number, source in enumerate(sources):
        key = f"data.sources[{number}]"
        unknown = sorted(set(source) - {"path", "image_folder", "weight"})
        if unknown or "path" not in source:
            wrong = f"has no {unknown[0]!r}" if unknown else "needs a path"
            raise InputError(f"{key}: {wrong}; a source takes path, image_folder and weight")
        weight = source.get("weight", 1.0)
        if not isinstance(weight, int | float) or weight <= 0:
            raise InputError(f"{key}.weight={weight}: must be a number above 0")
        named[f"{key}.path"] = Source(**source)
    return named


def read_good(sources: dict[str, Source], max_bad_fraction: float) -> tuple[dict[str, list[Entry]], list[Bad]]:
    """Read and check all sources.

    Returns:
        The good entries of each, by its key, and the bad ones.

    Raises:
        InputError: a file is not there or not to be read, or too many entries are bad.
    """
    if not 0 <= max_bad_fraction < 1:
        raise InputError(f"data.max_bad_fraction={max_bad_fraction}: allowed is a share from 0 to below 1")
    good: dict[str, list[Entry]] = {}
    bad: list[Bad] = []
    total, first = 0, ""
    for key, source in sources.items():
        entries, good[key] = read_entries(source, key), []
        present: set[str] = set()
        for number, entry in enumerate(entries):
            problem = problem_of(entry) or problem_of_image(entry, source.folder, present)
            if problem:
                first = first or f"{key}={source.path}: entry {number} ({name_of(entry)}): {problem}"
                bad.append(Bad(name_of(entry), problem))
            else:
                good[key].append(entry)
        total += len(entries)
    if len(bad) > max_bad_fraction * total:
        raise too_many_bad(first, len(bad))
    return good, bad


def too_many_bad(first: str, count: int) -> InputError:
    """The error that names the first of several bad samples."""
    more = f"; {count - 1} more are bad" if count > 1 else ""
    return InputError(f"{first}{more}; cal data-check names all that is bad and writes the rest")


def read_entries(source: Source, key: str) -> list[Any]:
    """What a file holds, unchecked; a line of a `.jsonl` that is not JSON comes as the error that it raised.

    Raises:
        InputError: the file or its folder of images is not there, or it is no list with an entry.
    """
    path = Path(source.path)
    if not path.is_file():
        raise InputError(f"{key}={path}: there is no such file; give the path of a LLaVA conversation JSON or JSONL")
    if not source.folder.is_dir():
        raise InputError(f"{key.removesuffix('path')}image_folder={source.folder}: there is no such folder")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".jsonl":
            entries = [parsed(line) for line in text.split("\n") if line.strip()]
        else:
            entries = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{key}={path}: not valid JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{key}={path}: must hold a list with at least one sample")
    return entries


def parsed(line: str) -> Any:
    """A line of JSON, or the error of one that is not."""
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        return error


def name_of(entry: object) -> str:
    """An entry's id as messages and files name it."""
    return str(entry["id"]) if isinstance(entry, dict) and "id" in entry else "without an id"


def problem_of_image(entry: Entry, folder: Path, present: set[str]) -> str | None:
    """Whether an image of an entry is missing or lies elsewhere; `present` are the names that were found before."""
    for name in image_names(entry):
        if name in present:
            continue
        if not (folder / name).resolve().is_relative_to(folder.resolve()):
            return f"its image {name} leaves the folder {folder}"
        if not (folder / name).is_file():
            return f"its image {name} is not in {folder}"
        present.add(name)
    return None


def problem_of(entry: object) -> str | None:
    """What keeps an entry from being LLaVA conversation JSON, in words; None if nothing does."""
    if isinstance(entry, json.JSONDecodeError):
        return f"its line is not valid JSON ({entry})"
    if not isinstance(entry, dict):
        return f"must be an object, not {type(entry).__name__}"
    missing = [key for key in ("id", "conversations") if key not in entry]
    if missing:
        return f"has no {missing[0]!r}"
    named = entry.get("image", "")
    if not isinstance(named, str) and not (
        isinstance(named, list) and named and all(isinstance(n, str) for n in named)
    ):
        return f"'image' must be a file name or a list of some, not {named!r:.80}; leave the key out for text alone"
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
    markers, images = sum(turn["value"].count("<image>") for turn in turns), len(image_names(entry))
    if markers != images:
        return f"it has {images} image{'s' * (images != 1)} but '<image>' stands in its turns {markers} times"
    return None


def open_in(folder: Path, name: str) -> Image.Image:
    """Read an image of a folder as RGB; see `open_image`."""
    return open_image(folder / name)


def open_inside(folder: Path, name: str, max_pixels: int | None = None) -> Image.Image:
    """Read an image that may not lie outside its folder; see `open_image`.

    Raises:
        InputError: it does, is not there, cannot be read or is too large.
    """
    problem = problem_of_image({"image": name}, folder, set())
    if problem:
        raise InputError(problem)
    return open_image(folder / name, max_pixels)


def open_image(path: Path | IO[bytes], max_pixels: int | None = None) -> Image.Image:
    """Read an image file as RGB.

    Args:
        path: the file, or its contents.
        max_pixels: the most that it may have; None means Pillow's own limit, twice `Image.MAX_IMAGE_PIXELS`.

    Raises:
        InputError: it cannot be read as an image, or is too large.
    """
    named = f"{path}: " if isinstance(path, Path) else "its image "
    try:
        with Image.open(path) as image:
            width, height = image.size
            if max_pixels is None or width * height <= max_pixels:
                return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise InputError(f"{named}cannot be read as an image ({error})") from error
    raise InputError(f"{named}has {width} x {height} pixels, more than {max_pixels}")


def write_llava_json(entries: list[Entry], path: Path) -> str:
    """Write entries as LLaVA JSON, whole or not at all, and return the SHA-256 of the file."""
    return write_whole(path, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
