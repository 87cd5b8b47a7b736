"""Words joined from tokens by hand, and ranked as pandas' own means say."""

import pytest

from cal_cli.inspection.tokens import Piece, Token
from cal_cli.inspection.words import Word, join_words, rank_words


def piece(text, delta=None, kind=None, special=False):
    if delta is None:
        return Piece(text, None)
    return Piece(text, Token((9.0, 3.0), (-1.0, -1.0 - delta), 1.0, kind, special))


def test_tokens_are_joined_to_words():
    pieces = [
        piece("what? "),
        *(
            piece("The", 0.5),
            piece(" vio", 1.0, "correlated"),
            piece("let", 2.0),
            piece(",", -1.0),
            piece(" don", 0.25),
        ),
        *(piece("'t", 0.25), piece(" -", 7.0), piece("</s>", 3.0, special=True)),
        *(piece("next "), piece("it", -0.5)),
    ]
    expected = [("the", 0.5, None), ("violet", 2.0, "correlated"), ("don't", 0.5, None), ("it", -0.5, None)]
    assert join_words(pieces) == [Word(text, pytest.approx(delta), kind) for text, delta, kind in expected]
    assert join_words([]) == []


def test_words_are_ranked_by_their_means_each_kind_apart():
    samples = [[piece("red", 2.0, "correlated"), piece(" a", -0.5)], [piece("red", -4.0, "contradicted")]] * 3
    samples += [[piece("red", 5.0, "correlated"), piece(" once", 9.0)]]
    visual, contradicted = rank_words(samples, least=2)
    assert [word[:3] for word in visual] == [("red", "correlated", 4)]
    assert visual[0].delta == pytest.approx((3 * 2 + 5) / 4)
    assert [word[:3] for word in contradicted] == [("red", "contradicted", 3), ("a", None, 3)]
    assert rank_words([], least=1) == [[], []]
    assert [word.text for word in rank_words(samples, least=1, size=1)[0]] == ["once"]
