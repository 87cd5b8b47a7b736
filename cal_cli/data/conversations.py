"""Samples in LLaVA's conversation format: a list of entries and a way to open their images.

An entry is `{"id": str, "image": str, "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`;
an entry without `image` is text alone, and `<image>` marks the image's place in a human turn.
Format: LLaVA's `docs/Finetune_Custom_Data.md`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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


class Conversations(Dataset):
    """A map-style dataset over LLaVA entries.

    Args:
        entries: the samples, in order.
        open_image: from an entry's `image` to an RGB picture; called when the sample is read.
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
        """The entry, its `image` opened (None for text alone).

        Where the image cannot be read and some samples may be bad, the next sample that shows an image takes its
        place, and `bad` lists those it stands for.

        Raises:
            InputError: the image cannot be read.
        """
        bad: list[Bad] = []
        for place in range(index, index + NEIGHBOURS):
            entry = self.entries[place % len(self.entries)]
            name = entry.get("image")
            if bad and name is None:
                continue
            try:
                image = None if name is None else self.open_image(name)
            except InputError as error:
                bad.append(Bad(str(entry["id"]), str(error)))
                if len(bad) > self.max_bad:
                    raise
                continue
            sample = {"id": entry["id"], "image": image, "conversations": entry["conversations"]}
            return sample | ({"bad": bad} if bad else {})
        raise InputError(f"sample {bad[0].id!r} and those after it: {bad[0].problem}")
