"""Which kind of word each token belongs to, as the paper distinguishes them: correlated, irrelevant or contradicted."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from cal_cli.data.sample import CORRELATED, Entry

CORRELATED_WORD = "correlated"  # it can only be known by looking
IRRELEVANT_WORD = "irrelevant"  # it does not depend on the picture
CONTRADICTED_WORD = "contradicted"  # it would depend on the picture, and is wrong
WORD_KINDS = (CORRELATED_WORD, IRRELEVANT_WORD, CONTRADICTED_WORD)


class Truth(NamedTuple):
    """What is known of a token: whether it does not describe its picture, and its kind; None if that is unknown."""

    is_noise: bool | None = None
    kind: str | None = None


def find_truth(
    entry: Entry, change: Mapping[str, Any] | None, noise_known: bool, answers: Sequence[Sequence[str]]
) -> list[list[Truth]]:
    """Find what is known of the tokens of a sample's answers.

    Args:
        entry: the sample after the change; its `correlated` marks, if it has some, give the kinds.
        change: what was changed in it, see `inject_noise`; None if nothing was.
        noise_known: whether the changes are known at all.
        answers: for each answer, the text of each token, special tokens included.

    Returns:
        For each answer, an item for each token.
    """
    places = [place for place, turn in enumerate(entry["conversations"]) if turn["from"] == "gpt"]
    found = []
    for place, pieces in zip(places, answers, strict=False):
        text = entry["conversations"][place]["value"]
        marked: list[bool] | None = None
        if entry.get(CORRELATED) is not None:
            spans = [mark[1:] for mark in entry[CORRELATED] if mark[0] == place]
            marked = find_touched(pieces, text, spans)
        exchanged = change is not None and "spans" not in change
        wrong: list[bool] | None = [exchanged] * len(pieces)
        if change is not None and change.get("turn") == place:
            wrong = find_touched(pieces, text, change["spans"])
        found.append(
            [
                describe(
                    (None if wrong is None else wrong[n]) if noise_known else None,
                    None if marked is None else marked[n],
                    exchanged,
                )
                for n in range(len(pieces))
            ]
        )
    return found


def describe(is_noise: bool | None, correlated: bool | None, exchanged: bool) -> Truth:
    """Combine whether a token is noise and its word marked; irrelevant words of `exchanged` texts stay so."""
    if is_noise and not exchanged:
        return Truth(is_noise, CONTRADICTED_WORD)
    if correlated is None:
        return Truth(is_noise)
    if not correlated:
        return Truth(is_noise, IRRELEVANT_WORD)
    return Truth(is_noise, CONTRADICTED_WORD if is_noise else CORRELATED_WORD)


def find_touched(pieces: Sequence[str], text: str, spans: Sequence[Sequence[int]]) -> list[bool] | None:
    """Find the tokens that hold a character of one of the spans.

    Args:
        pieces: the text of each token of an answer, special tokens included.
        text: the answer.
        spans: begin and end in the answer; an empty span means what follows it, such as the end token of a cut text.

    Returns:
        bool for each token; None if the tokens do not spell the answer, so that their places are unknown.
    """
    shift = "".join(pieces).find(text)
    if shift < 0:
        return None
    ends = [end - shift for end in accumulate(map(len, pieces))]
    places = [(end - len(piece), end) for piece, end in zip(pieces, ends, strict=True)]
    return [any(touches(place, span) for span in spans) for place in places]


def touches(place: tuple[int, int], span: Sequence[int]) -> bool:
    """Return whether a token at a place holds a character of a span, or follows it if it is empty."""
    begin, end = span
    return place[0] >= begin if begin == end else place[0] < end and place[1] > begin
