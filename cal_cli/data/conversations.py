"""Samples in LLaVA's conversation format: a list of entries and a way to open their images.

An entry is `{"id": str, "image": str, "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`;
an entry without `image` is text alone, one with several images has a list of them, and `<image>` marks the place of
each in a human turn.
Format: LLaVA's `docs/Finetune_Custom_Data.md`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

from cal_cli.errors import InputError

Entry = dict
NEIGHBOURS = 100  # samples tried in the place of one whose image cannot be read


@dataclass(frozen=True)
class Bad:
    """A sample that cannot be used, and why."""

    id: str
    problem: str


def image_names(entry: Entry) -> list[str]:
    """The names of an entry's images, in their order; none for text alone."""
    named = entry.get("image", [])
    return [named] if isinstance(named, str) else list(named)


def renamed(entry: Entry, rename: Callable[[str], str]) -> Entry:
    """An entry with other names for its images."""
    if "image" not in entry:
        return entry
    names = [rename(name) for name in image_names(entry)]
    return {**entry, "image": names[0] if isinstance(entry["image"], str) else names}


def opened(entry: Entry, open_image: Callable[..., Image.Image], *more: Any) -> Image.Image | list[Image.Image] | None:
    """An entry's image, a list of several, or None for text alone.

    Args:
        entry: that shows them.
        open_image: from a name, and `more`, to a picture.
        more: what else it takes.
    """
    images = [open_image(name, *more) for name in image_names(entry)]
    return None if not images else images[0] if len(images) == 1 else images


class Conversations(Dataset):
    """A map-style dataset over LLaVA entries.

    Args:
        entries: the samples, in order.
        open_image: from the name of an image to an RGB picture; called when the sample is read.
        bad: samples that were left out.
        max_bad_fraction: share of the samples that may be bad, those left out and those met later together.
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

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        """The entry, its `image` opened (None for text alone, a list of several).

        Where an image cannot be read and some samples may be bad, the next sample that shows an image takes its
        place, and `bad` lists those it stands for.

        Raises:
            InputError: the image cannot be read.
        """
        bad: list[Bad] = []
        for place in range(index, index + NEIGHBOURS):
            entry = self.entries[place % len(self.entries)]
            if bad and "image" not in entry:
                continue
            try:
                image = opened(entry, self.open_image)
            except InputError as error:
                bad.append(Bad(str(entry["id"]), str(error)))
                if len(bad) > self.max_bad:
                    raise
                continue
            sample = {"id": entry["id"], "image": image, "conversations": entry["conversations"]}
            return sample | ({"bad": bad} if bad else {})
        raise InputError(f"sample {bad[0].id!r} and those after it: {bad[0].problem}")
