"""Scores and intervals against figures worked out elsewhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.evaluation.metrics import exact_match, grouped_mean, objects_in, proportion, scene_match


def test_wilson_s_interval_is_the_textbook_s():
    """Newcombe 1998, Statistics in Medicine 17:857, table I: 81 of 263 and 0 of 20, Wilson without correction."""
    metric = proportion([1.0] * 81 + [0.0] * 182)
    assert metric["value"] == pytest.approx(81 / 263)
    assert metric["ci95"] == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert proportion([0.0] * 20)["ci95"] == pytest.approx([0.0, 0.1611], abs=5e-5)


def test_grouped_interval_is_the_t_interval_over_the_groups():
    scores, groups = [1, 1, 0, 1, 0, 0, 1, 0], list("aabbccdd")
    metric = grouped_mean(scores, groups)
    means = np.array([1.0, 0.5, 0.0, 0.5])
    half = 3.182446 * means.std(ddof=1) / 2  # t(0.975, 3) from a table, over the square root of 4
    assert metric["value"] == 0.5
    assert metric["ci95"] == pytest.approx([max(0, 0.5 - half), min(1, 0.5 + half)], abs=1e-5)


@given(st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=8, max_size=40))
def test_intervals_hold_their_value_and_stay_within_0_and_1(pairs):
    groups = [group for group, _ in pairs] + ["a", "b"]
    scores = [float(right) for _, right in pairs] + [0.0, 1.0]
    metric = grouped_mean(scores, groups)
    assert 0 <= metric["ci95"][0] <= 1 and 0 <= metric["ci95"][1] <= 1
    assert metric["value"] == pytest.approx(np.mean(scores))


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_alike_is_no_certainty(right):
    metric = grouped_mean([right] * 40, [str(number // 4) for number in range(40)])
    assert metric["ci95"][1] - metric["ci95"][0] > 0.2  # ten pictures


def test_a_scene_is_right_only_with_every_attribute():
    answer = "a red ring in the top left, a blue disc in the top right and a red cross in the bottom left."
    assert scene_match(answer, [answer]) == 1
    assert (
        scene_match(
            "A red ring in the top left and a red cross in the bottom left, a blue disc in the top right", [answer]
        )
        == 1
    )
    for old, new in (("red ring", "blue ring"), ("disc", "ring"), ("top right", "middle right")):
        assert scene_match(answer.replace(old, new), [answer]) == 0
    assert scene_match(answer.replace("a blue disc in the top right and ", ""), [answer]) == 0
    assert scene_match("", [answer]) == 0
    assert len(objects_in(answer)) == 3


def test_exact_match_forgives_case_and_outer_space_alone():
    assert exact_match(" The ring is red. ", ["the ring is red."]) == 1
    assert exact_match("the ring is red", ["the ring is red."]) == 0
    assert exact_match("b", ["a", "b"]) == 1
