"""Samples in LLaVA's conversation format: a list of entries and a function that opens their images.

An entry is `{"id": str, "image": str, "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`. An entry
without `image` is text only; one with several images has a list of names; `<image>` in a human turn marks their places.
It may have `loss_weights`, for `objective=column`: for each answer a number, or a list of numbers, one for each of its
tokens, the end token included; `family`, of which it is; `correlated`, a list of [turn, begin, end], the characters
of words that can only be known by looking; and `regions`, a list of [turn, begin, end, left, upper, right, lower], the
characters of words and the box in the image, in pixels, of what they name.
Format: LLaVA's `docs/Finetune_Custom_Data.md`.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import DataLoader, Dataset, Subset

from cal_cli.data.images import decode_inline
from cal_cli.runtime.errors import InputError, shorten
from cal_cli.runtime.files import fingerprint_states

Entry = dict
LOSS_WEIGHTS = "loss_weights"  # key of an entry: the weights of its answers or of their tokens
FAMILY = "family"  # key of an entry: only samples of the same family exchange their conversations
CORRELATED = "correlated"  # key of an entry: turn, begin and end of each word that can only be known by looking
REGIONS = "regions"  # key of an entry: turn, begin and end of words, and the edges of the box of what they name
ANNOTATIONS = (LOSS_WEIGHTS, FAMILY, CORRELATED, REGIONS)
NEIGHBOURS = 100  # samples to try in place of one whose image cannot be read


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, and why."""

    id: str
    problem: str


class LazyEntries(Sequence[Entry]):
    """Entries, each of which is made when it is read. A subclass defines `__len__` and `read`."""

    def __getitem__(self, place: Any) -> Any:
        places = range(len(self))[place]
        return self.read(places) if isinstance(places, int) else [self.read(index) for index in places]

    def read(self, index: int) -> Entry:
        """Return the entry at an index from 0."""
        raise NotImplementedError


def get_image_names(entry: Entry) -> list[str]:
    """Return the names of an entry's images, in their order; empty for text only."""
    named = entry.get("image", [])
    return [named] if isinstance(named, str) else list(named)


def load_samples(
    data: "Conversations", places: Sequence[int], batch_size: int, workers: int, collate: Callable[[list[dict]], Any]
) -> DataLoader:
    """Load the samples at some places in batches; each sample has its `place`, and a bad one is not replaced."""
    chosen = Subset(data.replace(replaces_bad=False), places)
    return DataLoader(chosen, batch_size, num_workers=workers, collate_fn=collate)


def rename_images(entry: Entry, rename: Callable[[str], str], inline: bool = False) -> Entry:
    """Return a copy of an entry with other names for its images; those that stand in place of a name if `inline`."""
    if "image" not in entry:
        return entry
    named = get_image_names(entry)
    names = [rename(name) if inline or decode_inline(name) is None else name for name in named]
    return {**entry, "image": names[0] if isinstance(entry["image"], str) else names}


def open_images(
    entry: Entry, open_image: Callable[..., Image.Image], *more: Any
) -> Image.Image | list[Image.Image] | None:
    """Open an entry's image, or a list of several; None for text only.

    Args:
        entry: the entry.
        open_image: opens one image by its name and `more`.
        more: further arguments of `open_image`.
    """
    images = [open_image(name, *more) for name in get_image_names(entry)]
    return None if not images else images[0] if len(images) == 1 else images


class Conversations(Dataset):
    """A map-style dataset over LLaVA entries.

    Args:
        entries: the samples, in order.
        open_image: from the name of an image to an RGB image; called when the sample is read.
        bad: samples that were left out.
        max_bad_fraction: largest share of bad samples, of those left out and those found later together.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        open_image: Callable[[str], Image.Image],
        bad: Sequence[Bad] = (),
        max_bad_fraction: float = 0.0,
    ) -> None:
        self.entries = entries
        self.open_image = open_image
        self.bad = list(bad)
        self.max_bad = int(max_bad_fraction * (len(entries) + len(bad)))
        self.scores: Sequence[list[float]] | None = None
        self.weights: Sequence[list[float]] | None = None
        self.weighted = False  # whether samples have `loss_weights`, None for those that have none in their entry
        # False: samples have their `place` in the data; a bad one is its `id`, `place` and `bad` alone, not replaced
        self.replaces_bad = True
        self.notes: list[str] = []  # what to know of the images before the data are used
        self.image_folder: Path | None = None  # of the images, if they are files
        self.identify_image: Callable[[str], str] = str  # from the name of an image to the same text for equal images

    def replace(self, **changes: Any) -> "Conversations":
        """Return the same dataset with other `entries`, or with `scores` or `weights`, a number for each token."""
        other = copy.copy(self)
        vars(other).update(changes)
        return other

    def fingerprint_images(self) -> str:
        """Return a fingerprint of the image files' names, sizes and times; that of no files if they are not files."""
        folder = self.image_folder
        names = [name for entry in self.entries for name in get_image_names(entry)] if folder is not None else []
        files = (name for name in dict.fromkeys(names) if decode_inline(name) is None)
        return fingerprint_states(Path(folder or "", name) for name in files)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        """Return a sample: `id`, `conversations`, and the opened `image` (None for text only, a list of several).

        If an image cannot be read and some samples may be bad, the next sample with an image takes its place, and
        `bad` lists the samples that it replaces.

        Raises InputError if the image cannot be read.
        """
        bad: list[Bad] = []
        for place in range(index, index + (NEIGHBOURS if self.replaces_bad else 1)):
            place %= len(self.entries)
            entry = self.entries[place]
            if bad and "image" not in entry:
                continue
            try:
                image = open_images(entry, self.open_image)
            except InputError as error:
                bad.append(Bad(shorten(str(entry["id"])), str(error)))
                if len(bad) > self.max_bad:
                    raise
                continue
            sample = {"id": entry["id"], "image": image, "conversations": entry["conversations"]}
            if not self.replaces_bad:
                sample["place"] = place
            if self.scores is not None:
                sample["scores_without_image"] = self.scores[place]
            if self.weights is not None:
                sample["token_weights"] = self.weights[place]
            if self.weighted:
                sample[LOSS_WEIGHTS] = entry.get(LOSS_WEIGHTS)
            return sample | ({"bad": bad} if bad else {})
        if not self.replaces_bad:
            return {"id": bad[0].id, "place": index, "bad": bad}
        raise InputError(f"sample {bad[0].id} and those after it: {bad[0].problem}")
