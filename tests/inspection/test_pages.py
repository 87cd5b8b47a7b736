"""The words of a figure of attention are those asked for, or those that look most."""

import numpy as np
import pytest
from PIL import Image

from cal_cli.inspection.pages import AttentionSample, ImageMaps, choose_words, draw_attention
from cal_cli.inspection.tokens import number_words

TEXTS = ["Describe", " it", " A", " viol", "et", " block", ",", " a", " block", ".", "</s>"]


def make_sample(sums):
    """A sample of one checkpoint whose supervised tokens, from the third on, look at the image by these sums."""
    maps = np.zeros((len(sums), 1, 2, 2), np.float32)
    maps[:, 0, 1, 0] = sums
    pieces = [(text, place - 2 if place >= 2 else None) for place, text in enumerate(TEXTS)]
    inside = [None if number is None or text == "</s>" else text for text, number in pieces]
    return AttentionSample("s", pieces, number_words(inside), [("a", [ImageMaps(Image.new("RGB", (8, 8)), maps)])])


def test_words_are_whole_and_the_first_of_each():
    found = choose_words(make_sample(np.ones(9)), 0, ["block", "violet"])
    assert found == {"violet": [1, 2], "block": [3, 4]}  # the comma is a token of the word before it


def test_the_words_that_look_most_are_chosen_by_default():
    sums = np.array([0.1, 5.0, 0.2, 1.0, 1.0, 0.3, 9.0, 9.0, 9.0])  # the second block does not count
    assert list(choose_words(make_sample(sums), 0, [])) == ["a", "violet", "block"]
    sample = make_sample(sums)
    many = AttentionSample("s", [(f" w{n}", n) for n in range(9)], list(range(9)), sample.checkpoints)
    assert list(choose_words(many, 0, [])) == ["w1", "w3", "w4", "w6", "w7", "w8"]


@pytest.mark.parametrize("file_format", ["pdf", "png", "svg"])
def test_the_same_figure_has_the_same_bytes(file_format):
    sample = make_sample(np.arange(9.0))
    assert draw_attention([sample], 0, file_format, []) == draw_attention([sample], 0, file_format, [])


def test_a_sample_without_the_words_is_named():
    with pytest.raises(ValueError, match=r"sample s has none of the words red; it has a, violet, block"):
        choose_words(make_sample(np.ones(9)), 0, ["red"])
