"""Caption noise: exchanged conversations (paper, Figure 3), and errors within a text."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cal_cli.data.annotations import move_marks
from cal_cli.data.exchange import exchange
from cal_cli.data.noise_kinds import KINDS, SWAP, Edit, WordLists, edit_answers, load_words
from cal_cli.data.sample import CORRELATED, FAMILY, LOSS_WEIGHTS, REGIONS, Conversations, Entry, get_image_names
from cal_cli.runtime.errors import InputError

WORDS = Path(__file__).with_name("noise_words.yaml")
TEXT = ("conversations", LOSS_WEIGHTS, CORRELATED)  # the keys of an entry that are exchanged together


@dataclass
class NoiseConfig:
    """The types of a config's `noise` node."""

    ratio: float
    seed: int
    kind: str = SWAP
    words: str | None = None


@dataclass(frozen=True)
class ChangedEntries(Sequence[Entry]):
    """Entries of which some are changed; each is made when it is read."""

    entries: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        index = range(len(self))[place]
        return self.change(index, self.entries[index])

    def __iter__(self) -> Iterator[Entry]:
        return (self.change(index, entry) for index, entry in enumerate(self.entries))

    def change(self, index: int, entry: Entry) -> Entry:
        """Return an entry as it is after the change."""
        raise NotImplementedError


@dataclass(frozen=True)
class Swapped(ChangedEntries):
    """Entries of which some have the conversation of another."""

    donors: dict[int, int]  # from the index of a sample to that of its donor

    def change(self, index: int, entry: Entry) -> Entry:
        if index not in self.donors:
            return entry
        donor = self.entries[self.donors[index]]
        text = {key: donor[key] for key in TEXT if key in donor}
        return {key: value for key, value in (entry | text).items() if key in text or key not in (*TEXT, REGIONS)}


@dataclass(frozen=True)
class Edited(ChangedEntries):
    """Entries of which some have an answer with an error."""

    edits: dict[int, tuple[int, Edit]]  # from the index of a sample to the place of a turn and its new text

    def change(self, index: int, entry: Entry) -> Entry:
        if index not in self.edits:
            return entry
        place, edit = self.edits[index]
        turns = list(entry["conversations"])
        before, turns[place] = turns[place]["value"], {**turns[place], "value": edit.text}
        marks = entry.get(CORRELATED)
        moved = {} if marks is None else {CORRELATED: move_marks(marks, place, before, edit.text)}
        kept = {key: value for key, value in entry.items() if key != REGIONS}
        return {**kept, "conversations": turns, **moved}


def inject_noise(data: Conversations, noise: NoiseConfig) -> tuple[Conversations, list[dict]]:
    """Inject noise of a kind into a dataset: `swap`, see `swap_conversations`, or another, see `edit_conversations`.

    Returns:
        The dataset, and what was changed.

    Raises:
        InputError: an unknown kind, word lists that cannot be read, or whatever the kind raises.
    """
    if noise.kind != SWAP and noise.kind not in KINDS:
        raise InputError(f"noise.kind={noise.kind}: allowed are {', '.join([SWAP, *KINDS])}")
    if noise.kind == SWAP:
        entries, changed = swap_conversations(data.entries, noise.ratio, noise.seed, data.identify_image)
    else:
        words = load_words(noise.words or str(WORDS))
        entries, changed = edit_conversations(data.entries, noise.ratio, noise.seed, noise.kind, words)
    return data.replace(entries=entries), changed


def swap_conversations(
    entries: Sequence[Entry], ratio: float, seed: int, identify_image: Callable[[str], str] = str
) -> tuple[Sequence[Entry], list[dict]]:
    """Exchange the whole conversations of round(ratio x n) of the n image samples with one another.

    Image and id stay, so that a coherent text is paired with the wrong image. No sample receives the conversation of
    one with the same picture, or one with the same answers as its own; if too few samples remain, the same answers to
    other questions are accepted. Samples with different numbers of images do not exchange, and neither do those of
    different families, if entries have a `family`. If the data do not allow as many exchanges, there are fewer: see
    `describe_changes`. Samples without an image are not changed.

    `identify_image` returns, from the name of an image, the same text for the same picture.

    Returns:
        The entries in their order, and the changes in that order: `id` and `index` of a sample, `donor_id` of the one
        whose conversation it received.

    Raises:
        InputError: the ratio is outside [0, 1], there are too few image samples, or no two of them can exchange.
    """
    check_ratio(ratio)
    groups: dict[tuple[int, str], list[int]] = {}
    for index, entry in enumerate(entries):
        if names := get_image_names(entry):
            groups.setdefault((len(names), str(entry.get(FAMILY))), []).append(index)
    total = sum(map(len, groups.values()))
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

    donors = exchange(groups.values(), count, (have_same_answers, are_same), random.Random(f"swap-{seed}"))
    if count and not donors:
        raise InputError(
            f"noise ratio {ratio}: no conversations can be exchanged, because all image samples show the same picture, "
            "have the same text, show different numbers of images or are of different families: give other data, or "
            "noise.ratio=0"
        )
    changed = [
        {"id": entries[index]["id"], "donor_id": entries[donors[index]]["id"], "index": index}
        for index in sorted(donors)
    ]
    return Swapped(entries, donors), changed


def edit_conversations(
    entries: Sequence[Entry], ratio: float, seed: int, kind: str, words: WordLists
) -> tuple[Sequence[Entry], list[dict]]:
    """Put an error into one answer of round(ratio x n) of the n image samples, see `noise_kinds`.

    Replacements are words that the answers of the data use. A sample without an answer that can be changed is passed
    over; if too few can be, fewer are changed: see `describe_changes`. Samples without an image are not changed.

    Returns:
        The entries in their order, and the changes in that order: `id` and `index` of a sample, `turn`, the place of
        the changed turn, and `spans`, begin and end of what is wrong in its new text, in characters.

    Raises:
        InputError: the ratio is outside [0, 1].
    """
    check_ratio(ratio)
    shown = [index for index, entry in enumerate(entries) if "image" in entry]
    count = round(ratio * len(shown))
    if count and kind in ("attribute", "sentence"):
        answers = (turn["value"] for entry in entries for turn in entry["conversations"] if turn["from"] == "gpt")
        words = words.keep_used(answers)
    edits: dict[int, tuple[int, Edit]] = {}
    order = random.Random(f"{kind}-{seed}").sample(shown, len(shown))
    for index in order:
        if len(edits) == count:
            break
        # a generator for each sample: whether others can be changed does not matter to its own edit
        found = edit_answers(entries[index], kind, words, random.Random(f"{kind}-{seed}-{index}"))
        if found is not None:
            edits[index] = found
    changed = [
        {"id": entries[index]["id"], "index": index, "turn": place, "spans": [list(span) for span in edit.spans]}
        for index, (place, edit) in sorted(edits.items())
    ]
    return Edited(entries, edits), changed


def describe_changes(entries: Sequence[Entry], noise: NoiseConfig, changed: list[dict]) -> str | None:
    """Describe how many conversations were changed if they are fewer than the ratio asks for; None otherwise."""
    total = sum("image" in entry for entry in entries)
    if len(changed) == round(noise.ratio * total):
        return None
    if noise.kind != SWAP:
        return (
            f"{len(changed)} of {total} conversations are changed, fewer than noise ratio {noise.ratio} asks for: the "
            f"others have no answer that noise.kind={noise.kind} can change"
        )
    return (
        f"{len(changed)} of {total} conversations are exchanged, fewer than noise ratio {noise.ratio} asks for: "
        "whatever the others could receive is about the same picture or has the same text, so they keep their own"
    )


def check_ratio(ratio: float) -> None:
    """Raise InputError unless a noise ratio is from 0 to 1."""
    if not 0 <= ratio <= 1:
        raise InputError(f"noise ratio {ratio}: allowed is a number from 0 to 1")


def make_manifest(noise: NoiseConfig, entries: Sequence[Entry], changed: list[dict], source: str, sha256: str) -> dict:
    """Return the contents of `noise_manifest.json`; `n` counts the image samples, to which the ratio refers."""
    return {
        "ratio": noise.ratio,
        "kind": noise.kind,
        "seed": noise.seed,
        "n": sum("image" in entry for entry in entries),
        "changed": changed,
        "source": source,
        "sha256": sha256,
    }
