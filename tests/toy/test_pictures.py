"""Photographs: faded and noisy by as much as is promised, and the same ones again."""

import random

import numpy as np
import pytest
from PIL import Image

from cal_cli.toy.pictures import PICTURE, photograph
from cal_cli.toy.scenes import make_scenes


@pytest.fixture
def drawing():
    pixels = np.full((PICTURE, PICTURE, 3), 128, dtype=np.uint8)
    pixels[: PICTURE // 2] = 200
    return Image.fromarray(pixels)


def test_without_grain_nothing_changes(drawing):
    assert photograph(drawing, 0.0, 40.0, random.Random(0)) is drawing


@pytest.mark.parametrize("grain", [0.25, 0.5, 1.0])
def test_contrast_and_noise_keep_to_their_range_and_use_it(drawing, grain):
    contrasts, deviations = [], []
    for seed in range(60):
        pixels = np.asarray(photograph(drawing, grain, 40.0, random.Random(seed)), dtype=float)
        paper, ink = pixels[: PICTURE // 2], pixels[PICTURE // 2 :]
        contrasts.append((paper.mean() - ink.mean()) / 72)
        deviations.append(ink.std())
    assert min(contrasts) > 1 - 0.8 * grain - 0.06 and max(contrasts) < 1.06
    assert max(deviations) < 41 * grain
    assert max(contrasts) - min(contrasts) > 0.6 * grain and max(deviations) > 32 * grain


def test_the_grain_changes_pictures_but_no_text():
    clean, grainy = make_scenes(n=12, seed=3, grain=0.0), make_scenes(n=12, seed=3, grain=1.0)
    assert clean.entries == grainy.entries
    pairs = [(clean[i]["image"], grainy[i]["image"]) for i in range(12) if clean[i]["image"] is not None]
    assert pairs and all(one.tobytes() != other.tobytes() for one, other in pairs)
    again = make_scenes(n=12, seed=3, grain=1.0)
    assert all(again[i]["image"].tobytes() == grainy[i]["image"].tobytes() for i in range(12) if grainy[i]["image"])
