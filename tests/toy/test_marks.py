"""Texts with their correlated words marked."""

from hypothesis import given
from hypothesis import strategies as st

from cal_cli.toy.marks import count_words, mark_words, unmark

WORD = st.text("abc.,' ", max_size=6)


@given(st.lists(st.tuples(WORD, WORD), max_size=5))
def test_spans_hold_what_was_in_braces(pairs):
    marked = "".join(f"{plain}{{{word}}}" for plain, word in pairs)
    text, spans = unmark(marked)
    assert text == "".join(plain + word for plain, word in pairs)
    assert [text[begin:end] for begin, end in spans] == [word for _, word in pairs]
    assert count_words(marked) == len(pairs)


def test_each_word_is_marked():
    assert mark_words("far left") == "{far} {left}"
