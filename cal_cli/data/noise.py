"""Caption noise: exchange the conversations of some samples (paper, Figure 3)."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cal_cli.data.sample import Conversations, Entry, get_image_names
from cal_cli.runtime.errors import InputError


@dataclass
class NoiseConfig:
    """The types of a config's `noise` node."""

    ratio: float
    seed: int


@dataclass(frozen=True)
class Noisy(Sequence[Entry]):
    """Entries of which some have the conversation of another; each is made when it is read."""

    entries: Sequence[Entry]
    donors: dict[int, int]  # from the index of a sample to that of its donor

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        return self._exchange(index, self.entries[index])

    def __iter__(self) -> Iterator[Entry]:
        return (self._exchange(index, entry) for index, entry in enumerate(self.entries))

    def _exchange(self, index: int, entry: Entry) -> Entry:
        if index not in self.donors:
            return entry
        return {**entry, "conversations": self.entries[self.donors[index]]["conversations"]}


def inject_noise(data: Conversations, ratio: float, seed: int) -> tuple[Conversations, list[dict]]:
    """Exchange conversations in a dataset; arguments and errors as `swap_conversations`."""
    entries, changed = swap_conversations(data.entries, ratio, seed)
    return data.replace(entries=entries), changed


def swap_conversations(entries: Sequence[Entry], ratio: float, seed: int) -> tuple[Sequence[Entry], list[dict]]:
    """Exchange the whole conversations of round(ratio x n) of the n image samples with one another.

    Image and id stay, so that a coherent text is paired with the wrong image. The exchange is one random cycle through
    the chosen samples, so that none keeps its own. Samples without an image are not changed.

    Returns:
        The entries in their order, and the changes in that order: `id` and `index` of a sample, `donor_id` of the one
        whose conversation it received.

    Raises:
        InputError: the ratio is outside [0, 1], there are too few image samples, or they show different numbers of
            images.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"noise ratio {ratio}: allowed is a number from 0 to 1")
    images = [len(get_image_names(entry)) for entry in entries]
    with_image = [index for index, count in enumerate(images) if count]
    count = round(ratio * len(with_image))
    if ratio > 0 and (len(with_image) < 2 or count == 1):
        raise InputError(
            f"noise ratio {ratio} of {len(with_image)} image samples is {count}: an exchange needs at least 2; "
            "give more samples or a larger ratio"
        )
    kinds = sorted({images[index] for index in with_image})
    if ratio > 0 and len(kinds) > 1:
        raise InputError(
            f"noise ratio {ratio}: samples show {' or '.join(map(str, kinds))} images, and conversations can only be "
            "exchanged between samples with equally many; give such data, or noise.ratio=0"
        )
    cycle = random.Random(f"swap-{seed}").sample(with_image, count)
    donors = dict(zip(cycle, cycle[1:] + cycle[:1], strict=True))
    changed = [
        {"id": entries[index]["id"], "donor_id": entries[donors[index]]["id"], "index": index}
        for index in sorted(donors)
    ]
    return Noisy(entries, donors), changed


def make_manifest(
    ratio: float, seed: int, entries: Sequence[Entry], changed: list[dict], source: str, sha256: str
) -> dict:
    """Return the contents of `noise_manifest.json`; `n` counts the image samples, to which the ratio refers."""
    return {
        "ratio": ratio,
        "kind": "swap",
        "seed": seed,
        "n": sum("image" in entry for entry in entries),
        "changed": changed,
        "source": source,
        "sha256": sha256,
    }
