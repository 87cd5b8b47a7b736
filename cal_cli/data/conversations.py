"""Samples in LLaVA's conversation format: a list of entries and a way to open their images.

An entry is `{"id": str, "image": str, "conversations": [{"from": "human" | "gpt", "value": str}, ...]}`;
an entry without `image` is text alone, and `<image>` marks the image's place in a human turn.
Format: LLaVA's `docs/Finetune_Custom_Data.md`.
"""

from collections.abc import Callable

from PIL import Image
from torch.utils.data import Dataset

Entry = dict


class Conversations(Dataset):
    """A map-style dataset over LLaVA entries.

    Args:
        entries: the samples, in order.
        open_image: from an entry's `image` to an RGB picture; called when the sample is read.
    """

    def __init__(self, entries: list[Entry], open_image: Callable[[str], Image.Image]) -> None:
        self.entries = entries
        self.open_image = open_image

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> dict:
        """The entry, its `image` opened (None for text alone)."""
        entry = self.entries[index]
        name = entry.get("image")
        return {
            "id": entry["id"],
            "image": None if name is None else self.open_image(name),
            "conversations": entry["conversations"],
        }
