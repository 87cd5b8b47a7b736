"""Intervals against scipy's own bootstrap, the normal approximation and known figures."""

import numpy as np
import pytest
from scipy import stats

from cal_cli.evaluation.metrics import POPE, Mean, divide
from cal_cli.statistics.bootstrap import estimate_values, run_group_test
from tests.evaluation.test_metrics import asked

MEAN = Mean("exact_match", "m")


def make_parts(scores):
    return [{"score": float(score), "n": 1.0} for score in scores]


def test_the_interval_of_a_mean_is_scipy_s():
    scores = np.random.default_rng(3).random(200)
    found = estimate_values(MEAN.compute, make_parts(scores), [f"{n:03d}" for n in range(200)])["m"]
    known = stats.bootstrap((scores,), np.mean, n_resamples=20000, method="percentile", rng=1).confidence_interval
    assert found["value"] == pytest.approx(scores.mean())
    assert found["ci95"] == pytest.approx([known.low, known.high], abs=0.006)


def test_questions_about_one_picture_are_drawn_together():
    """Ten questions a picture, all alike: the interval is that of 40 pictures, not of 400 questions."""
    right = np.random.default_rng(0).random(40) < 0.5
    parts, groups = make_parts(np.repeat(right, 10)), [f"p{n:02d}" for n in range(40) for _ in range(10)]
    low, high = estimate_values(MEAN.compute, parts, groups)["m"]["ci95"]
    share = right.mean()
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(share * (1 - share) / 40), rel=0.15)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_alike_is_no_certainty(right):
    """0 of 20: Wilson's interval ends at 0.1611 (Newcombe 1998, Statistics in Medicine 17:857, table I)."""
    low, high = estimate_values(MEAN.compute, make_parts([right] * 20), [str(n) for n in range(20)], top=1.0)["m"][
        "ci95"
    ]
    assert high - low == pytest.approx(0.1611, abs=5e-5)
    assert right in (low, high)


@pytest.mark.parametrize("right", [0.0, 1.0])
def test_all_alike_of_one_kind_is_as_uncertain_as_its_own_images(right):
    """20 images of one task among 500 of another: the interval of the first is that of 20, not of 520."""
    kinds = ["few"] * 20 + ["many"] * 500
    scores = [right] * 20 + (np.random.default_rng(0).random(500) < 0.5).astype(float).tolist()
    parts = [{f"{kind}:score": score, f"{kind}:n": 1.0} for kind, score in zip(kinds, scores, strict=True)]

    def values(sums):
        return {kind: divide(sums[f"{kind}:score"], sums[f"{kind}:n"]) for kind in ("many", "few")}

    low, high = estimate_values(values, parts, [str(n) for n in range(520)], top=1.0)["few"]["ci95"]
    assert high - low == pytest.approx(0.1611, abs=5e-5)
    assert right in (low, high)


def test_one_picture_has_no_interval():
    assert estimate_values(MEAN.compute, make_parts([1, 0]), ["p", "p"])["m"] == {"value": 0.5, "ci95": None}


def test_a_ratio_s_interval_is_that_of_the_ratio_of_drawn_sums():
    rng = np.random.default_rng(5)
    right = rng.random(120) < 0.5
    said = np.where(rng.random(120) < 0.8, right, ~right)
    words = {True: "yes", False: "no"}
    questions = asked([words[bool(r)] for r in right])
    found = estimate_values(
        POPE().compute, POPE().score(questions, [words[bool(s)] for s in said]), [str(n) for n in range(120)]
    )

    def f1(drawn):
        true = (right & said)[drawn].sum()
        return 2 * true / (right[drawn].sum() + said[drawn].sum())

    draws = [f1(rng.integers(0, 120, 120)) for _ in range(4000)]
    assert found["pope_f1_score"]["value"] == pytest.approx(f1(np.arange(120)))
    assert found["pope_f1_score"]["ci95"] == pytest.approx(np.quantile(draws, [0.025, 0.975]).tolist(), abs=0.02)


def test_one_question_for_each_picture_is_mcnemar_s_exact_test():
    """10 and 3 discordant: twice the sum of C(13, k) / 2^13 for k up to 3."""
    one, other = [1.0] * 10 + [0.0] * 3 + [1.0] * 7, [0.0] * 10 + [1.0] * 3 + [1.0] * 7
    groups = [str(n) for n in range(20)]
    found = run_group_test(one, other, groups)
    assert (found["only_first"], found["only_second"]) == (10, 3)
    assert found["p"] == pytest.approx(2 * (1 + 13 + 78 + 286) / 2**13)
    assert run_group_test([1.0], [1.0], ["a"])["p"] == 1
    assert run_group_test([0.5, 0.2], [1.0, 0.1], ["a", "b"])["only_first"] is None


def test_many_questions_about_one_picture_are_no_evidence_by_number():
    """Six pictures with ten questions each, all won by one: 2 of 2^6 flips, where McNemar's test would have 2^-59."""
    one, other, groups = [1.0] * 60, [0.0] * 60, [str(n // 10) for n in range(60)]
    assert run_group_test(one, other, groups)["p"] == pytest.approx(2 / 2**6)


def test_the_group_test_holds_its_level():
    drawn, false = np.random.default_rng(0), 0
    for _ in range(150):
        hard = drawn.random(30).repeat(4)
        one, other = ((drawn.random(30).repeat(4) < hard).astype(float).tolist() for _ in range(2))
        groups = [str(n // 4) for n in range(120)]
        false += run_group_test(one, other, groups)["p"] < 0.05
    assert false / 150 < 0.085  # 0.05 and two standard deviations
