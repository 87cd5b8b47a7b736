"""Photographs: faded and noisy by as much as is promised, and the same ones again."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cal_cli.toy.families.objects import WORDS_OF
from cal_cli.toy.materials import IMAGE_SIZE, PHRASES, count_words, mark_words, photograph, unmark, write_irrelevant
from cal_cli.toy.world import make_scenes

WORDS, FORMS = PHRASES["lists"], PHRASES["forms"]


@pytest.fixture
def drawing():
    pixels = np.full((IMAGE_SIZE, IMAGE_SIZE, 3), 128, dtype=np.uint8)
    pixels[: IMAGE_SIZE // 2] = 200
    return Image.fromarray(pixels)


def test_without_grain_nothing_changes(drawing):
    assert photograph(drawing, 0.0, 40.0, random.Random(0)) is drawing


@pytest.mark.parametrize("grain", [0.25, 0.5, 1.0])
def test_contrast_and_noise_keep_to_their_range_and_use_it(drawing, grain):
    contrasts, deviations = [], []
    for seed in range(60):
        pixels = np.asarray(photograph(drawing, grain, 40.0, random.Random(seed)), dtype=float)
        paper, ink = pixels[: IMAGE_SIZE // 2], pixels[IMAGE_SIZE // 2 :]
        contrasts.append((paper.mean() - ink.mean()) / 72)
        deviations.append(ink.std())
    assert min(contrasts) > 1 - 0.8 * grain - 0.06 and max(contrasts) < 1.06
    assert max(deviations) < 41 * grain
    assert max(contrasts) - min(contrasts) > 0.6 * grain and max(deviations) > 32 * grain


def test_the_grain_changes_pictures_but_no_text():
    clean, grainy = make_scenes(n=12, seed=3, grain=0.0), make_scenes(n=12, seed=3, grain=1.0)
    assert clean.entries[:] == grainy.entries[:]
    pairs = [(clean[i]["image"], grainy[i]["image"]) for i in range(12) if clean[i]["image"] is not None]
    assert pairs and all(one.tobytes() != other.tobytes() for one, other in pairs)
    again = make_scenes(n=12, seed=3, grain=1.0)
    assert all(again[i]["image"].tobytes() == grainy[i]["image"].tobytes() for i in range(12) if grainy[i]["image"])


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


def test_cameras_change_the_pixels_of_the_plain_one_and_nothing_else():
    painted = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    for grain in (0.0, 1.0):
        plain, same, exchanged, dark = (
            np.asarray(photograph(painted, grain, 40.0, random.Random("x"), camera))
            for camera in (None, "plain", "bgr", "dark")
        )
        assert np.array_equal(plain, same) and np.array_equal(plain, exchanged[..., ::-1])
        assert np.array_equal(dark, np.floor(plain * 0.4 + 1e-9))
