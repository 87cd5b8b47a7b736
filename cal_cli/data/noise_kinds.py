"""Noise within a text: a wrong word, a hallucinated sentence, a cut, words in another order.

Each kind changes one answer, and knows which of its characters no longer describe the image.
"""

import itertools
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from cal_cli.runtime.errors import InputError

SWAP, SIMILAR = "swap", "swap_similar"  # the kinds that exchange whole conversations, see `noise`
VOWELS = "aeiou"
DIGITS = re.compile(r"[0-9]+")


class Edit(NamedTuple):
    """A changed text."""

    text: str
    spans: list[tuple[int, int]]  # begin and end of what is wrong in it; an empty span stands for what is missing there


@dataclass(frozen=True)
class WordLists:
    """The words of each list, lower case, and the forms of sentences, with the names of lists in braces."""

    lists: dict[str, list[str]]
    sentences: list[str]

    @cached_property
    def list_of(self) -> dict[str, str]:
        """The first list that has a word, by the word."""
        return {word: name for name, words in reversed(self.lists.items()) for word in words}

    @cached_property
    def pattern(self) -> re.Pattern:
        """Any word of the lists, as a whole word."""
        words = sorted(self.list_of, key=len, reverse=True)
        return re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})\b", re.IGNORECASE)

    def keep_used(self, texts: Iterable[str]) -> "WordLists":
        """Return the lists with the words that some texts use; a list of which fewer than two are used stays whole.

        Replacements then are words of the data: a model cannot tell noise by words that it never sees elsewhere.
        """
        used = {word.lower() for text in texts for word in self.pattern.findall(text)}
        lists = {name: [word for word in words if word in used] for name, words in self.lists.items()}
        kept = {name: words if len(words) > 1 else self.lists[name] for name, words in lists.items()}
        sentences = [form for form in self.sentences if all(len(lists[name]) > 1 for name in find_names(form))]
        return WordLists(kept, sentences or self.sentences)


def load_words(path: str) -> WordLists:
    """Read word lists from a YAML file.

    Raises InputError if the file does not have the form of `noise_words.yaml`.
    """
    try:
        content = yaml.safe_load(Path(path).read_text())
        lists = {str(name): [word.lower() for word in words] for name, words in content["lists"].items()}
        sentences = [str(form) for form in content["sentences"]]
        unknown = sorted({name for form in sentences for name in find_names(form)} - set(lists))
        short = sorted(name for name, words in lists.items() if len(set(words)) < 2)
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(
            f"noise.words={path}: cannot be read as word lists ({problem}); see cal_cli/data/noise_words.yaml"
        ) from error
    if unknown or short or not lists:
        problem = (
            f"has no list {unknown[0]}" if unknown else f"the list {short[0]} needs two words" if short else "empty"
        )
        raise InputError(f"noise.words={path}: {problem}")
    return WordLists(lists, sentences)


def find_names(form: str) -> list[str]:
    """Return the names of lists in a form of a sentence."""
    return [name for name in re.findall(r"\{(\w+)\}", form) if name != "a"]


def replace_word(text: str, words: WordLists, drawn: random.Random) -> Edit | None:
    """Replace one word of the lists by another of its list, or a number by another with as many digits.

    The new word is one that the text does not have if there is one. Case is kept, and "a" before it becomes "an" where
    needed. Returns None if the text has neither such a word nor a number.
    """
    matches = [*words.pattern.finditer(text), *DIGITS.finditer(text)]
    if not matches:
        return None
    match = drawn.choice(matches)
    present = {word.group().lower() for word in matches}
    old = match.group().lower()
    if old.isdigit():
        new = draw_number(old, present, drawn)
    else:
        alternatives = [word for word in words.lists[words.list_of[old]] if word != old]
        new = drawn.choice([word for word in alternatives if word not in present] or alternatives)
        new = copy_case(match.group(), new)
    return put_word(text, match, new)


def put_word(text: str, match: re.Match, new: str) -> Edit:
    """Put a word in the place of a match, and "an" or "a" before it as it needs."""
    before, begin = text[: match.start()], match.start()
    if article := re.search(r"\b(an?)(\s+)$", before, re.IGNORECASE):
        begin = article.start() + len(copy_case(article.group(1), choose_article(new))) + len(article.group(2))
        before = before[: article.start()] + copy_case(article.group(1), choose_article(new)) + article.group(2)
    return Edit(before + new + text[match.end() :], [(begin, begin + len(new))])


def replace_habitually(text: str, words: WordLists, drawn: random.Random) -> Edit | None:
    """Replace every word by the next one of its list, as a captioner does that always takes one for the other.

    The last word of a list stays, and so does case. Returns None if no word of the text has a next one.
    """
    follow: dict[str, str] = {}
    for names in reversed(words.lists.values()):
        follow |= dict(itertools.pairwise(names))
    spans: list[tuple[int, int]] = []
    for match in reversed([*words.pattern.finditer(text)]):
        if match.group().lower() in follow:
            edit = put_word(text, match, copy_case(match.group(), follow[match.group().lower()]))
            longer = len(edit.text) - len(text)
            text, spans = edit.text, edit.spans + [(begin + longer, end + longer) for begin, end in spans]
    return Edit(text, spans) if spans else None


def draw_number(old: str, present: set[str], drawn: random.Random) -> str:
    """Draw a number with as many digits as another, which does not begin with 0 and is not that one.

    It is none of those `present` either, unless many draws find no other.
    """
    for attempt in itertools.count():
        first = str(drawn.randint(1, 9))
        new = first + "".join(str(drawn.randint(0, 9)) for _ in old[1:])
        if new != old and (new not in present or attempt > 100):
            return new
    raise AssertionError  # the loop has no end


def add_sentence(text: str, words: WordLists, drawn: random.Random) -> Edit | None:
    """Add a sentence of the lists' words, none of which the text has; None if there is no such sentence."""
    present = {word.lower() for word in words.pattern.findall(text)}
    form = drawn.choice(words.sentences)
    chosen = {}
    for name in find_names(form):
        others = [word for word in words.lists[name] if word not in present]
        if not others:
            return None
        chosen[name] = drawn.choice(others)
    sentence = re.sub(r"\{(?!a\})(\w+)\}", lambda match: chosen[match.group(1)], form)
    sentence = re.sub(
        r"\{a\}(\s+)(\w)", lambda match: choose_article(match.group(2)) + match.group(1) + match.group(2), sentence
    )
    if text[:1].islower():
        sentence = sentence[:1].lower() + sentence[1:]
    changed = f"{text.rstrip()} {sentence}"
    return Edit(changed, [(len(changed) - len(sentence), len(changed))])


def cut_text(text: str, words: WordLists, drawn: random.Random) -> Edit | None:
    """Cut a text after a word, so that at least one word remains and one is missing; None if it has fewer than two."""
    ends = [match.end() for match in re.finditer(r"\S+", text)][:-1]
    if not ends:
        return None
    end = drawn.choice(ends)
    return Edit(text[:end], [(end, end)])


def shuffle_words(text: str, words: WordLists, drawn: random.Random) -> Edit | None:
    """Put the words of a text into another order; None if there is no other."""
    parts = text.split()
    if len(set(parts)) < 2:
        return None
    mixed = parts
    while mixed == parts:
        mixed = drawn.sample(parts, len(parts))
    changed = " ".join(mixed)
    return Edit(changed, [(0, len(changed))])


def choose_article(word: str) -> str:
    """Return the indefinite article of a word, by its first letter."""
    return "an" if word[:1].lower() in VOWELS else "a"


def copy_case(model: str, word: str) -> str:
    """Return a word in the case of another: lower, upper or with a capital."""
    if model.isupper() and len(model) > 1:
        return word.upper()
    return word.capitalize() if model[:1].isupper() else word


KINDS: dict[str, Callable[[str, WordLists, random.Random], Edit | None]] = {
    "attribute": replace_word,
    "habit": replace_habitually,
    "sentence": add_sentence,
    "truncate": cut_text,
    "shuffle": shuffle_words,
}


def edit_answers(entry: dict[str, Any], kind: str, words: WordLists, drawn: random.Random) -> tuple[int, Edit] | None:
    """Change one answer of an entry, drawn from those that can be changed: the place of its turn, and the edit.

    Answers with a weight for each token are left alone. Returns None if no answer can be changed.
    """
    turns = [place for place, turn in enumerate(entry["conversations"]) if turn["from"] == "gpt"]
    weights = entry.get("loss_weights") or [1.0] * len(turns)
    places = [place for place, weight in zip(turns, weights, strict=True) if not isinstance(weight, list)]
    for place in drawn.sample(places, len(places)):
        edit = KINDS[kind](entry["conversations"][place]["value"], words, drawn)
        if edit is not None:
            return place, edit
    return None
