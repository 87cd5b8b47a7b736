"""Changed samples: swapped conversations (paper, Figure 3), errors within a text, and dropout of images."""

import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from cal_cli.data.exchange import Conflict, exchange
from cal_cli.data.noise_kinds import KINDS, SIMILAR, SWAP, Edit, WordLists, edit_answers, load_words
from cal_cli.data.sample import (
    CORRELATED,
    FAMILY,
    LOSS_WEIGHTS,
    REGIONS,
    Conversations,
    Entry,
    LazyEntries,
    get_image_names,
)
from cal_cli.data.tables import Rows
from cal_cli.data.validate import move_marks
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError

WORDS = Path(__file__).with_name("noise_words.yaml")
OF_WORDS = ("attribute", "habit", "sentence")  # the kinds that use lists of words
TEXT = ("conversations", LOSS_WEIGHTS, CORRELATED)  # the keys of an entry that are exchanged together


@dataclass
class NoiseConfig:
    """The types of a config's `noise` node."""

    ratio: float
    seed: int
    kind: str = SWAP
    words: str | None = None
    families: list[str] | None = None


@dataclass(frozen=True)
class ChangedEntries(LazyEntries):
    """Entries of which some are changed."""

    entries: Sequence[Entry]

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> Entry:
        return self.change(index, self.entries[index])

    def __iter__(self) -> Iterator[Entry]:
        return (self.change(index, entry) for index, entry in enumerate(self.entries))

    def change(self, index: int, entry: Entry) -> Entry:
        """Return an entry as it is after the change."""
        raise NotImplementedError


def find_rows(data: Conversations) -> Rows | None:
    """Return the rows behind a data set, None if it has none."""
    entries = data.entries
    while isinstance(entries, ChangedEntries):
        entries = entries.entries
    return entries if isinstance(entries, Rows) else None


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
    """Inject noise of a kind into a dataset: swaps, see `swap_conversations`, or errors, see `edit_conversations`.

    Returns the dataset, and what was changed.

    Raises InputError for an unknown kind or family, word lists that cannot be read or have no use, or whatever the
    kind raises.
    """
    swaps = (SWAP, SIMILAR)
    if noise.kind not in (*swaps, *KINDS):
        raise InputError(f"noise.kind={noise.kind}: allowed are {', '.join([*swaps, *KINDS])}")
    if noise.words is not None and noise.kind not in OF_WORDS:
        raise InputError(
            f"noise.words={noise.words}: noise.kind={noise.kind} uses no lists of words; {', '.join(OF_WORDS)} do"
        )
    shown = None if noise.families is None else find_shown(data.entries, noise)
    if noise.kind in swaps:
        similar = noise.kind == SIMILAR
        entries, changed = swap_conversations(
            data.entries, noise.ratio, noise.seed, data.identify_image, shown, similar=similar
        )
    else:
        words = load_words(noise.words or str(WORDS))
        entries, changed = edit_conversations(data.entries, noise.ratio, noise.seed, noise.kind, words, shown)
    return data.replace(entries=entries), changed


def find_shown(entries: Sequence[Entry], noise: NoiseConfig) -> list[int]:
    """Return the places of the samples that the ratio refers to: those with an image, of the chosen families.

    Raises InputError if no sample is of a chosen family.
    """
    family_of = {index: entry.get(FAMILY) for index, entry in enumerate(entries) if "image" in entry}
    if noise.families is None:
        return list(family_of)
    known = sorted({str(family) for family in family_of.values() if family is not None})
    if unknown := [name for name in noise.families if name not in known]:
        raise InputError(
            f"noise.families={list(noise.families)}: no sample with an image is of the family {unknown[0]!r}; there "
            f"are {', '.join(known) or 'none'}"
        )
    return [index for index, family in family_of.items() if family in noise.families]


def swap_conversations(
    entries: Sequence[Entry],
    ratio: float,
    seed: int,
    identify_image: Callable[[str], str] = str,
    shown: Sequence[int] | None = None,
    similar: bool = False,
) -> tuple[Sequence[Entry], list[dict]]:
    """Exchange the whole conversations of round(ratio x n) of the n image samples with one another.

    Image and id stay, so that a coherent text is paired with the wrong image. No sample receives the conversation of
    one with the same image, or one with the same answers as its own; if too few samples remain, the same answers to
    other questions are accepted. Samples with different numbers of images do not exchange, and neither do those of
    different families, if entries have a `family`. If the data do not allow as many exchanges, there are fewer: see
    `describe_changes`. Samples without an image are not changed.

    `identify_image` returns, from the name of an image, the same text for the same image. `shown` are the places of the
    image samples, by default all. With `similar` donors have texts with many of the same words, see `order_by_words`.

    Returns the entries in their order, and the changes in that order: `id` and `index` of a sample, `donor_id` of the
    one whose conversation it received.

    Raises InputError if the ratio is outside [0, 1], there are too few image samples, or no two of them can exchange.
    """
    check_ratio(ratio)
    groups: dict[tuple[int, str], list[int]] = {}
    chosen = None if shown is None else set(shown)
    for index, entry in enumerate(entries):
        if (chosen is None or index in chosen) and (names := get_image_names(entry)):
            groups.setdefault((len(names), str(entry.get(FAMILY))), []).append(index)
    total = sum(map(len, groups.values()))
    count = round(ratio * total)
    if ratio > 0 and (total < 2 or count == 1):
        raise InputError(
            f"noise ratio {ratio} of {total} image samples is {count}: an exchange needs at least 2; "
            "give more samples or a larger ratio"
        )

    generator = random.Random(f"swap-{seed}")
    conflicts = make_conflicts(entries, identify_image)
    arrange = partial(order_by_words, entries) if similar else list
    donors = exchange(groups.values(), count, conflicts, generator, arrange)
    if count and not donors:
        raise InputError(
            f"noise ratio {ratio}: no conversations can be swapped, because all image samples show the same image, "
            "have the same text, show different numbers of images or are of different families: give other data, or "
            "noise.ratio=0"
        )
    changed = [
        {"id": entries[index]["id"], "donor_id": entries[donors[index]]["id"], "index": index}
        for index in sorted(donors)
    ]
    return Swapped(entries, donors), changed


def make_conflicts(entries: Sequence[Entry], identify_image: Callable[[str], str]) -> tuple[Conflict, Conflict]:
    """Make the conflicts of an exchange of conversations: about the same image, or with the same answers or texts."""

    @cache
    def find_images(index: int) -> frozenset[str]:
        return frozenset(identify_image(name) for name in get_image_names(entries[index]))

    @cache
    def hash_texts(index: int) -> tuple[int, int]:
        turns = [(turn["from"], " ".join(turn["value"].lower().split())) for turn in entries[index]["conversations"]]
        return hash(tuple(turns)), hash(tuple(text for speaker, text in turns if speaker == "gpt"))

    def conflict(which: int, first: int, second: int) -> bool:
        same = hash_texts(first)[which] == hash_texts(second)[which]
        return same or not find_images(first).isdisjoint(find_images(second))

    return partial(conflict, 1), partial(conflict, 0)


CANDIDATES = 50  # members among which the most similar one is found


def order_by_words(entries: Sequence[Entry], members: Sequence[int]) -> list[int]:
    """Order members, places of entries, so that each is followed by one whose answers have many of the same words.

    That is the one with the largest share of common words (Jaccard) among the next `CANDIDATES` members that are left.
    """
    turns = {member: entries[member]["conversations"] for member in members}
    words = {
        member: {word for turn in turns[member] if turn["from"] == "gpt" for word in turn["value"].lower().split()}
        for member in members
    }
    ordered, left = list(members[:1]), list(members[1:])
    while left:
        last = words[ordered[-1]]
        candidates = [words[member] for member in left[:CANDIDATES]]
        shares = [len(last & others) / max(len(last | others), 1) for others in candidates]
        ordered.append(left.pop(shares.index(max(shares))))
    return ordered


def edit_conversations(
    entries: Sequence[Entry], ratio: float, seed: int, kind: str, words: WordLists, shown: Sequence[int] | None = None
) -> tuple[Sequence[Entry], list[dict]]:
    """Put an error into one answer of round(ratio x n) of the n image samples, see `noise_kinds`.

    `shown` are their places, by default all.

    Replacements are words that the answers of the data use. A sample without an answer that can be changed is passed
    over; if too few can be, fewer are changed: see `describe_changes`. Samples without an image are not changed.

    Returns the entries in their order, and the changes in that order: `id` and `index` of a sample, `turn`, the place
    of the changed turn, and `spans`, begin and end of what is wrong in its new text, in characters.

    Raises InputError if the ratio is outside [0, 1].
    """
    check_ratio(ratio)
    shown = [index for index, entry in enumerate(entries) if "image" in entry] if shown is None else shown
    count = round(ratio * len(shown))
    if count and kind in ("attribute", "habit", "sentence"):
        answers = (turn["value"] for entry in entries for turn in entry["conversations"] if turn["from"] == "gpt")
        words = words.keep_used(answers)
    edits: dict[int, tuple[int, Edit]] = {}
    order = random.Random(f"{kind}-{seed}").sample(shown, len(shown))
    for index in order:
        if len(edits) == count:
            break
        # a generator for each sample: whether others can be changed does not matter to its own edit
        edited = edit_answers(entries[index], kind, words, random.Random(f"{kind}-{seed}-{index}"))
        if edited is not None:
            edits[index] = edited
    changed = [
        {"id": entries[index]["id"], "index": index, "turn": place, "spans": [list(span) for span in edit.spans]}
        for index, (place, edit) in sorted(edits.items())
    ]
    return Edited(entries, edits), changed


def describe_changes(entries: Sequence[Entry], noise: NoiseConfig, changed: list[dict]) -> str | None:
    """Describe how many conversations were changed if they are fewer than the ratio asks for; None otherwise."""
    total = len(find_shown(entries, noise))
    if len(changed) == round(noise.ratio * total):
        return None
    if noise.kind not in (SWAP, SIMILAR):
        return (
            f"{len(changed)} of {total} conversations are changed, fewer than noise ratio {noise.ratio} asks for: the "
            f"others have no answer that noise.kind={noise.kind} can change"
        )
    return (
        f"{len(changed)} of {total} conversations are swapped, fewer than noise ratio {noise.ratio} asks for: "
        "whatever the others could receive is about the same image or has the same text, so they stay unswapped"
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
        **({} if noise.families is None else {"families": list(noise.families)}),
        "n": len(find_shown(entries, noise)),
        "changed": changed,
        "source": source,
        "sha256": sha256,
    }


def load_data(config: DictConfig, console: Console) -> Conversations:
    """Load the data of a config, and print the notes on their images."""
    data: Conversations = build(config, "data")
    for note in data.notes:
        console.print(note, markup=False, soft_wrap=True)
    return data


def load_noisy_data(
    config: DictConfig, noise: NoiseConfig, manifest: str | None, console: Console, samples: int | None = None
) -> tuple[Conversations, dict[int, dict[str, Any]] | None]:
    """Load the data of a config, with noise if some is asked for; say so if fewer conversations could be changed.

    `manifest` is a `noise_manifest.json` of data that are changed already; `samples` is the number of samples, from the
    first, None for all. Returns the data, and what was changed, by the index of the sample; None if that is unknown.

    Raises InputError if the manifest does not fit the data, or both a manifest and noise are given.
    """
    data = load_data(config, console)
    if manifest is not None and noise.ratio:
        raise InputError("manifest and noise.ratio exclude each other: give one of them")
    noisy = None if manifest is None else read_changes(Path(manifest), data)
    if samples is not None:
        data = data.replace(entries=data.entries[:samples])
    if noise.ratio:
        data, changed = inject_noise(data, noise)
        noisy = {change["index"]: change for change in changed}
        if shortfall := describe_changes(data.entries, noise, changed):
            console.print(shortfall)
    return data, noisy


def read_changes(path: Path, data: Conversations) -> dict[int, dict[str, Any]]:
    """Read the changes that a manifest lists, by the index of their sample.

    Raises InputError if there is no such manifest, or it is of other data.
    """
    if not path.is_file():
        raise InputError(f"manifest={path}: there is no such file; cal noise-inject writes one next to its data.json")
    try:
        changed = json.loads(path.read_text())["changed"]
        places = {change["index"]: change["id"] for change in changed}
        by_index = {change["index"]: change for change in changed}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise InputError(f"manifest={path}: not a manifest of cal noise-inject ({error!r})") from error
    for index, identity in places.items():
        if index >= len(data) or data.entries[index]["id"] != identity:
            raise InputError(f"manifest={path}: its sample {identity!r} is not sample {index} of the data")
    return by_index


@dataclass(frozen=True)
class WithoutImages(ChangedEntries):
    """Entries of which some have lost their images and the marks of these, so that the model learns p(text) as well.

    A model that has never been trained without images gives any text a low p(text), wrong ones too. The idea is that of
    classifier-free guidance (Ho and Salimans 2022).
    """

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
    """Drop the images of round(fraction x n) of the n image samples, which become text only.

    Raises InputError if that is none, although the fraction is not 0.
    """
    if not fraction:
        return data
    shown = [index for index, entry in enumerate(data.entries) if "image" in entry]
    if not round(fraction * len(shown)):
        raise InputError(f"image_dropout={fraction} of {len(shown)} image samples is none: give more samples or null")
    dropped = random.Random(f"dropout-{seed}").sample(shown, round(fraction * len(shown)))
    return data.replace(entries=WithoutImages(data.entries, frozenset(dropped)))
