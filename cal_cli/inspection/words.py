"""Which words the image makes most, and least, probable: tokens joined to words, and words ranked over samples."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import pandas as pd

from cal_cli.inspection.tokens import Piece

EDGES = ".,;:!?\"'()[]{}<>"  # characters that do not belong to a word at its ends


class Word(NamedTuple):
    """A word of an answer: its kind is that of its first token that has one."""

    text: str
    delta: float  # sum over its tokens, in nats
    kind: str | None


class RankedWord(NamedTuple):
    """A word over all its occurrences of one kind."""

    text: str
    kind: str | None
    times: int
    delta: float  # mean


def join_words(pieces: Sequence[Piece]) -> list[Word]:
    """Join the supervised tokens of a sample to words, in lower case and without punctuation at their ends.

    By the chain rule the differences of a word's tokens in log-probability add up to that of the word. A word begins
    where a token begins with white space, after one that ends with it, and with each answer; special tokens belong to
    none.
    """
    words: list[list[Piece]] = []
    before: Piece | None = None
    for piece in pieces:
        inside = piece.token is not None and not piece.token.special
        if inside:
            begins = before is None or before.text[-1:].isspace() or piece.text[:1].isspace()
            words += [[]] if begins else []
            words[-1].append(piece)
        before = piece if inside else None
    found = []
    for word in words:
        text = "".join(piece.text for piece in word).strip().strip(EDGES).lower()
        tokens = [piece.token for piece in word if piece.token is not None]
        kind = next((token.kind for token in tokens if token.kind), None)
        if any(character.isalnum() for character in text):
            found.append(Word(text, sum(token.logprob_delta for token in tokens), kind))
    return found


def rank_words(samples: Iterable[Sequence[Piece]], least: int = 3, size: int = 12) -> list[list[RankedWord]]:
    """Rank the words of samples, each kind of a word apart, by their mean difference in log-probability.

    Args:
        samples: with an image each.
        least: number of occurrences below which a word is left out.
        size: of each list, at most.

    Returns:
        The words that the image makes most probable, and those that it makes least probable.
    """
    table = pd.DataFrame([word for pieces in samples for word in join_words(pieces)], columns=list(Word._fields))
    grouped = table.groupby(["text", "kind"], dropna=False, sort=True)["delta"].agg(["size", "mean"])
    ranked = [
        RankedWord(text, kind if isinstance(kind, str) else None, int(count), float(mean))
        for (text, kind), count, mean in grouped[grouped["size"] >= least].itertuples()
    ]
    visual = sorted((word for word in ranked if word.delta > 0), key=lambda word: -word.delta)
    contradicted = sorted((word for word in ranked if word.delta < 0), key=lambda word: word.delta)
    return [visual[:size], contradicted[:size]]
