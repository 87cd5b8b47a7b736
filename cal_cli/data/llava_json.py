"""Read and write LLaVA's conversation JSON, with images in a folder: the format of users' own data."""

import io
import json
import os
import random
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from cal_cli.data.images import MAX_PIXELS, check_background, decode_inline, find_file_problem, open_content, open_image
from cal_cli.data.sample import Bad, Conversations, Entry, get_image_names, rename_images
from cal_cli.data.validate import find_problem, get_id, make_bad_error, normalize, parse_line
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_whole


def load_llava_json(
    path: str,
    image_folder: str | None = None,
    max_bad_fraction: float = 0.001,
    background: str | None = "white",
    icc: bool | None = None,
) -> Conversations:
    """Read a data set: a JSON list of entries, or one entry on each line (`.jsonl`). All entries are checked.

    Args:
        path: the file.
        image_folder: the folder that the entries' `image` names are relative to; None means that of the file.
        max_bad_fraction: largest share of malformed entries and of entries without their image, which are left out.
        background, icc: see `open_image`.

    Raises InputError if there is no such file, or too many entries are bad; the message names the first.
    """
    check_background(background, "data.background")
    source = Source(path, image_folder)
    entries, bad = read_good_entries({"data.path": source}, max_bad_fraction)
    read = partial(open_relative, source.folder, background, icc)
    data = Conversations(entries["data.path"], read, bad, max_bad_fraction)
    return data.replace(image_folder=source.folder)


def load_llava_mixture(
    sources: list[Any],
    seed: int = 0,
    max_bad_fraction: float = 0.001,
    background: str | None = "white",
    icc: bool | None = None,
) -> Conversations:
    """Read several data sets as one, in their order.

    Args:
        sources: each `{path, image_folder, weight}`; the last two are optional. The weight is that of the source in an
            epoch: 0.5 takes a random half, 2 takes each sample twice. Images are named by their full path.
        seed: of the random shares.
        max_bad_fraction: see `load_llava_json`.
        background, icc: see `open_image`.

    Raises InputError as `load_llava_json`, or for a weight that is not above 0.
    """
    check_background(background, "data.background")
    named = parse_sources(sources)
    good, bad = read_good_entries(named, max_bad_fraction)
    entries: list[Entry] = []
    for number, (key, source) in enumerate(named.items()):
        renamed = [rename_images(entry, partial(os.path.join, source.folder)) for entry in good[key]]
        whole, part = divmod(round(source.weight * len(renamed)), max(len(renamed), 1))
        entries += renamed * whole
        entries += [renamed[i] for i in sorted(random.Random(f"{number}-{seed}").sample(range(len(renamed)), part))]
    data = Conversations(entries, partial(open_relative, Path(), background, icc), bad, max_bad_fraction)
    return data.replace(image_folder=Path())


@dataclass
class Source:
    """One file of LLaVA conversations and the folder of its images."""

    path: str
    image_folder: str | None = None
    weight: float = 1.0

    @property
    def folder(self) -> Path:
        """The folder that image names are relative to."""
        return Path(self.path).parent if self.image_folder is None else Path(self.image_folder)

    def open_image(self, name: str, max_pixels: int = MAX_PIXELS) -> Image.Image:
        """Open an image by its name; see `open_content`."""
        return open_content(name, self.folder, max_pixels)


def parse_sources(sources: list[Any]) -> dict[str, Source]:
    """Parse the sources of a mixture; each is named by its config key, for error messages.

    Raises InputError if one is malformed.
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


def read_good_entries(sources: dict[str, Source], max_bad_fraction: float) -> tuple[dict[str, list[Entry]], list[Bad]]:
    """Read and check all sources.

    Returns the good entries of each source, by its key, and the bad ones.

    Raises InputError if a file is missing or cannot be read, or too many entries are bad.
    """
    if not 0 <= max_bad_fraction < 1:
        raise InputError(f"data.max_bad_fraction={max_bad_fraction}: allowed is a share from 0 to below 1")
    good: dict[str, list[Entry]] = {}
    bad: list[Bad] = []
    total, first = 0, ""
    for key, source in sources.items():
        entries, good[key] = read_entries(source, key), []
        find_cached = cache(partial(find_file_problem, folder=source.folder))
        for number, entry in enumerate(map(normalize, entries)):
            problem = find_problem(entry) or next(filter(None, map(find_cached, get_image_names(entry))), None)
            if problem:
                first = first or f"{key}={source.path}: entry {number} ({get_id(entry)}): {problem}"
                bad.append(Bad(get_id(entry), problem))
            else:
                good[key].append(entry)
        total += len(entries)
    if len(bad) > max_bad_fraction * total:
        raise make_bad_error(first, len(bad))
    return good, bad


def read_entries(source: Source, key: str) -> list[Any]:
    """Read the entries of a file, unchecked; a line of a `.jsonl` that is not JSON becomes its JSONDecodeError.

    Raises InputError if the file is missing or has no entries.
    """
    path = Path(source.path)
    if not path.is_file():
        raise InputError(f"{key}={path}: there is no such file; give the path of a LLaVA conversation JSON or JSONL")
    if not source.folder.is_dir():
        raise InputError(f"{key.removesuffix('path')}image_folder={source.folder}: there is no such folder")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl" and not text.lstrip().startswith("["):
            entries = [parse_line(line) for line in text.split("\n") if line.strip()]
        else:
            entries = json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{key}={path}: not valid JSON ({error})") from error
    if not isinstance(entries, list) or not entries:
        raise InputError(f"{key}={path}: must hold a list with at least one sample")
    return entries


def open_relative(folder: Path, background: str | None, icc: bool | None, name: str) -> Image.Image:
    """Read an image by its name relative to a folder, or from its own contents; see `open_image`."""
    inline = decode_inline(name)
    return open_image(folder / name if inline is None else io.BytesIO(inline), background=background, icc=icc)


def write_llava_json(entries: list[Entry], path: Path) -> str:
    """Write entries as LLaVA JSON and return the SHA-256 of the file."""
    return write_whole(path, json.dumps(entries, indent=1, ensure_ascii=False) + "\n")
