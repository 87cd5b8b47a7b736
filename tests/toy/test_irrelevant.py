"""Irrelevant language: as much as asked for, unpredictable, and never about the picture."""

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cal_cli.toy.families.objects import WORDS_OF
from cal_cli.toy.irrelevant import FORMS, WORDS, write_irrelevant


@given(st.integers(0, 80), st.integers(0, 999))
def test_the_number_of_words_is_the_one_asked_for(words, seed):
    assert sum(len(phrase.split()) for phrase in write_irrelevant(words, random.Random(seed))) == words


def test_no_phrase_has_a_word_of_the_scenes():
    used = {word for words in WORDS.values() for word in words} | {word for form in FORMS for word in form.split()}
    assert not used & {word for words in WORDS_OF.values() for entry in words for word in entry.split()}


def test_no_word_is_frequent():
    state = random.Random(0)
    words = [word for _ in range(2000) for phrase in write_irrelevant(6, state) for word in phrase.split()]
    lists = Counter(word for word in words if any(word in entries for entries in WORDS.values()))
    assert max(lists.values()) < 0.05 * len(words)
    assert sum(lists.values()) > 0.5 * len(words)  # most words are drawn from a list
