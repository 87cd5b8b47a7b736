"""Image dropout: some samples are trained on without their images, so that the model learns p(text) as well.

Objectives that contrast compare p(text given image) with p(text). A model that has never been trained without images
gives any text a low p(text), wrong ones too. The idea is that of classifier-free guidance (Ho and Salimans 2022).
"""

import random
from dataclasses import dataclass

from cal_cli.data.noise import ChangedEntries
from cal_cli.data.sample import REGIONS, Conversations, Entry


@dataclass(frozen=True)
class WithoutImages(ChangedEntries):
    """Entries of which some have lost their images and the marks of these."""

    dropped: frozenset[int]  # indices

    def change(self, index: int, entry: Entry) -> Entry:
        if index not in self.dropped:
            return entry
        turns = [
            {**turn, "value": turn["value"].replace("<image>", "").strip("\n")} if turn["from"] == "human" else turn
            for turn in entry["conversations"]
        ]
        return {key: value for key, value in entry.items() if key not in ("image", REGIONS)} | {"conversations": turns}


def drop_images(data: Conversations, fraction: float | None, seed: int) -> Conversations:
    """Drop the images of round(fraction x n) of the n image samples, which become text only."""
    if not fraction:
        return data
    shown = [index for index, entry in enumerate(data.entries) if "image" in entry]
    dropped = random.Random(f"dropout-{seed}").sample(shown, round(fraction * len(shown)))
    return data.replace(entries=WithoutImages(data.entries, frozenset(dropped)))
