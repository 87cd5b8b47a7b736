"""Caption noise: exchange the conversations of some samples (paper, Figure 3)."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from cal_cli.data.exchange import exchange
from cal_cli.data.sample import LOSS_WEIGHTS, Conversations, Entry, get_image_names
from cal_cli.runtime.errors import InputError

TEXT = ("conversations", LOSS_WEIGHTS)  # the keys of an entry that are exchanged together


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
        donor = self.entries[self.donors[index]]
        text = {key: donor[key] for key in TEXT if key in donor}
        return {key: value for key, value in (entry | text).items() if key in text or key not in TEXT}


def inject_noise(data: Conversations, ratio: float, seed: int) -> tuple[Conversations, list[dict]]:
    """Exchange conversations in a dataset; arguments and errors as `swap_conversations`."""
    entries, changed = swap_conversations(data.entries, ratio, seed, data.identify_image)
    return data.replace(entries=entries), changed


def swap_conversations(
    entries: Sequence[Entry], ratio: float, seed: int, identify_image: Callable[[str], str] = str
) -> tuple[Sequence[Entry], list[dict]]:
    """Exchange the whole conversations of round(ratio x n) of the n image samples with one another.

    Image and id stay, so that a coherent text is paired with the wrong image. No sample receives the conversation of
    one with the same picture, or one with the same answers as its own; if too few samples remain, the same answers to
    other questions are accepted. Samples with different numbers of images do not exchange. If the data do not allow as
    many exchanges, there are fewer: see `describe_exchange`. Samples without an image are not changed.

    `identify_image` returns, from the name of an image, the same text for the same picture.

    Returns:
        The entries in their order, and the changes in that order: `id` and `index` of a sample, `donor_id` of the one
        whose conversation it received.

    Raises:
        InputError: the ratio is outside [0, 1], there are too few image samples, or no two of them can exchange.
    """
    if not 0 <= ratio <= 1:
        raise InputError(f"noise ratio {ratio}: allowed is a number from 0 to 1")
    by_images: dict[int, list[int]] = {}
    for index, entry in enumerate(entries):
        if names := get_image_names(entry):
            by_images.setdefault(len(names), []).append(index)
    total = sum(map(len, by_images.values()))
    count = round(ratio * total)
    if ratio > 0 and (total < 2 or count == 1):
        raise InputError(
            f"noise ratio {ratio} of {total} image samples is {count}: an exchange needs at least 2; "
            "give more samples or a larger ratio"
        )

    @cache
    def find_pictures(index: int) -> frozenset[str]:
        return frozenset(identify_image(name) for name in get_image_names(entries[index]))

    @cache
    def hash_texts(index: int) -> tuple[int, int]:
        turns = [(turn["from"], " ".join(turn["value"].lower().split())) for turn in entries[index]["conversations"]]
        return hash(tuple(turns)), hash(tuple(text for speaker, text in turns if speaker == "gpt"))

    def have_same_answers(one: int, other: int) -> bool:
        return hash_texts(one)[1] == hash_texts(other)[1] or not find_pictures(one).isdisjoint(find_pictures(other))

    def are_same(one: int, other: int) -> bool:
        return hash_texts(one)[0] == hash_texts(other)[0] or not find_pictures(one).isdisjoint(find_pictures(other))

    donors = exchange(by_images.values(), count, (have_same_answers, are_same), random.Random(f"swap-{seed}"))
    if count and not donors:
        raise InputError(
            f"noise ratio {ratio}: no conversations can be exchanged, because all image samples show the same picture, "
            "have the same text or show different numbers of images: give other data, or noise.ratio=0"
        )
    changed = [
        {"id": entries[index]["id"], "donor_id": entries[donors[index]]["id"], "index": index}
        for index in sorted(donors)
    ]
    return Noisy(entries, donors), changed


def describe_exchange(entries: Sequence[Entry], ratio: float, changed: list[dict]) -> str | None:
    """Describe how many conversations were exchanged if they are fewer than the ratio asks for; None otherwise."""
    total = sum("image" in entry for entry in entries)
    if len(changed) == round(ratio * total):
        return None
    return (
        f"{len(changed)} of {total} conversations are exchanged, fewer than noise ratio {ratio} asks for: whatever the "
        "other samples could receive is about the same picture or has the same text, so they keep their own"
    )


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
