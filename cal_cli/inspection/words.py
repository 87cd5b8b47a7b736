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


def number_words(texts: Sequence[str | None]) -> list[int]:
    """Number the words that tokens belong to, from 0; -1 for a token that belongs to none.

    A word begins where a token begins with white space, after one that ends with it, and after a token of no word.
    `texts` are those of the tokens; None for one of no word, such as one of the prompt or a special one.
    """
    numbers: list[int] = []
    count, before = 0, None
    for text in texts:
        count += text is not None and (before is None or before[-1:].isspace() or text[:1].isspace())
        numbers.append(-1 if text is None else count - 1)
        before = text
    return numbers


def join_words(pieces: Sequence[Piece]) -> list[Word]:
    """Join the supervised tokens of a sample to words, in lower case and without punctuation at their ends.

    By the chain rule the differences of a word's tokens in log-probability add up to that of the word. Special tokens
    belong to none; see `number_words`.
    """
    words: dict[int, list[Piece]] = {}
    inside = [None if piece.token is None or piece.token.special else piece.text for piece in pieces]
    for number, piece in zip(number_words(inside), pieces, strict=True):
        if number >= 0:
            words.setdefault(number, []).append(piece)
    found = []
    for word in words.values():
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
