"""Which tokens of an answer are wrong, from the characters that a change made wrong."""

from collections.abc import Sequence
from itertools import accumulate


def find_noise_tokens(pieces: Sequence[str], text: str, spans: Sequence[Sequence[int]]) -> list[bool] | None:
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
