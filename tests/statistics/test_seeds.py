"""Intervals over runs and images: against Student's, a direct draw of the sum, and their coverage by simulation."""

import numpy as np
import pytest
from scipy import stats

from cal_cli.evaluation.metrics import POPE, Mean
from cal_cli.statistics.bootstrap import sum_by_group
from cal_cli.statistics.seeds import adjust_for_family, count_wins, estimate_over_runs, mean_over_seeds, score_groups
from tests.evaluation.test_metrics import asked


def draw(drawn, runs, images, by_run, by_image, rest, starts=None, by_start=0.0):
    """Scores around 0 with these standard deviations, and those of the mean: exact, and of its estimate by z."""
    scores = by_run * drawn.normal(size=(runs, 1)) + by_image * drawn.normal(size=(1, images))
    scores = scores + rest * drawn.normal(size=(runs, images))
    counts = np.zeros(1)
    if starts is not None:
        counts = np.bincount(starts)
        scores = scores + by_start * drawn.normal(size=len(counts))[starts][:, None]
    variance = by_run**2 / runs + by_image**2 / images + rest**2 / runs / images
    return scores, np.sqrt(variance + by_start**2 * (counts**2).sum() / runs**2)


@pytest.mark.parametrize("shift", [0.0, 0.01, 0.1])
def test_runs_alone_have_student_s_interval_and_p(shift):
    values = np.random.default_rng(4).normal(shift, 0.02, 5)
    found, known = estimate_over_runs(values[:, None].repeat(40, axis=1)), stats.ttest_1samp(values, 0)
    assert found["value"] == pytest.approx(values.mean()) and found["n"] == 5
    assert found["ci95"] == pytest.approx(list(known.confidence_interval()))
    assert found["p"] == pytest.approx(known.pvalue)


def test_a_single_run_has_the_interval_over_its_images():
    scores = np.random.default_rng(1).integers(0, 2, (1, 30)).astype(float)
    found, known = estimate_over_runs(scores), stats.ttest_1samp(scores[0], 0)
    assert found["ci95"] == pytest.approx(list(known.confidence_interval())) and found["p"] == pytest.approx(
        known.pvalue
    )


def test_the_error_is_the_sum_of_student_s_and_a_normal_part():
    """By two million draws of both parts, whose variances are computed here by the expected mean squares."""
    drawn = np.random.default_rng(0)
    scores, _ = draw(drawn, 3, 300, 0.02, 0.25, 0.35)
    scores = scores + 0.03
    of_run = scores.mean(axis=1).var(ddof=1) / 3
    rest = scores - scores.mean(axis=1, keepdims=True) - scores.mean(axis=0) + scores.mean()
    of_image = scores.mean(axis=0).var(ddof=1) / 300 - (rest**2).sum() / (2 * 299) / (3 * 300)
    errors = drawn.standard_t(2, 2_000_000) * of_run**0.5 + drawn.normal(size=2_000_000) * of_image**0.5
    found = estimate_over_runs(scores)
    assert found["ci95"][1] - found["value"] == pytest.approx(np.quantile(abs(errors), 0.95), rel=0.01)
    assert found["p"] == pytest.approx((abs(errors) > abs(found["value"])).mean(), abs=0.002)
    assert found["error"] == pytest.approx((of_run + of_image) ** 0.5)


@pytest.mark.parametrize(("runs", "width"), [(3, 1.9), (5, 1.4), (10, 1.15)])
@pytest.mark.parametrize("by_run", [0.005, 0.02, 0.04])
def test_it_covers_the_truth_and_is_little_wider_than_with_known_variances(runs, width, by_run):
    """The variances of differences on 512 images; Student's factor for three runs alone is 2.2."""
    drawn, covered, widths = np.random.default_rng(runs), [], []
    for _ in range(300):
        scores, error = draw(drawn, runs, 512, by_run, 0.25, 0.35)
        low, high = estimate_over_runs(scores)["ci95"]
        covered.append(low <= 0 <= high)
        widths.append((high - low) / 2 / 1.96 / error)
    assert np.mean(covered) > 0.95 - 2 * np.sqrt(0.95 * 0.05 / 300)
    assert np.median(widths) < width


def test_it_covers_the_truth_for_answers_that_are_right_or_wrong():
    drawn, covered = np.random.default_rng(7), []
    for _ in range(300):
        hard, skill = drawn.normal(size=(1, 400)), 0.15 * drawn.normal(size=(2, 5, 1))
        one, other = (drawn.random((5, 400)) < stats.norm.cdf(hard + 0.5 + shift) for shift in skill)
        low, high = estimate_over_runs(one.astype(float) - other)["ci95"]
        covered.append(low <= 0 <= high)
    assert np.mean(covered) > 0.925


@pytest.mark.parametrize("by_start", [0.0, 0.02, 0.05])
def test_checkpoints_that_runs_started_from_are_random_too(by_start):
    starts = np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
    drawn, covered, ignored = np.random.default_rng(3), [], []
    for _ in range(300):
        scores, _ = draw(drawn, 10, 256, 0.02, 0.25, 0.35, starts, by_start)
        for found, given in ((covered, starts.tolist()), (ignored, None)):
            low, high = estimate_over_runs(scores, given)["ci95"]
            found.append(low <= 0 <= high)
    assert np.mean(covered) > 0.925
    assert by_start < 0.05 or np.mean(ignored) < 0.85  # what ignoring them would cost


@pytest.mark.parametrize("starts", [[0, 1, 1, 1, 1, 1], [0, 0, 1], [0, 1, 2, 2], [0, 0, 0, 0, 1, 2]])
def test_checkpoints_with_unequal_numbers_of_runs_have_an_interval(starts):
    starts, drawn, covered = np.array(starts), np.random.default_rng(9), []
    for _ in range(300):
        scores, _ = draw(drawn, len(starts), 64, 0.02, 0.1, 0.1, starts, 0.02)
        low, high = estimate_over_runs(scores, starts.tolist())["ci95"]
        covered.append(low <= 0 <= high)
    assert np.mean(covered) > 0.9


def test_runs_of_one_checkpoint_or_each_of_its_own_are_plain_runs():
    scores, _ = draw(np.random.default_rng(5), 4, 50, 0.02, 0.2, 0.3)
    plain = estimate_over_runs(scores)
    assert estimate_over_runs(scores, ["a"] * 4) == plain == estimate_over_runs(scores, list("abcd"))


@pytest.mark.parametrize("scores", [np.full((3, 4), 0.2), np.array([[1.0]]), np.array([[0.1, np.nan], [0.2, 0.3]])])
def test_what_does_not_vary_or_is_not_known_has_no_interval(scores):
    found = estimate_over_runs(scores)
    assert found["ci95"] is None and found["p"] is None


def test_the_scores_of_a_mean_are_the_images_own():
    parts = [{"score": score, "n": 1.0} for score in (1.0, 0.0, 0.5, 1.0)]
    scores = score_groups(Mean("exact_match", "m").compute, sum_by_group(parts, list("abcd")))
    assert scores["m"] == pytest.approx([1.0, 0.0, 0.5, 1.0])


def test_the_scores_of_a_sum_vary_as_the_sum_does():
    """As OCRBench's, which counts right answers: each image is one of n, so its score is n times its own part."""
    scores = score_groups(lambda sums: {"right": sums["score"]}, {"score": np.array([1.0, 0.0, 2.0, 1.0])})["right"]
    assert scores == pytest.approx([4.0, 0.0, 8.0, 4.0]) and scores.mean() == pytest.approx(4.0)


def test_the_scores_of_a_ratio_have_its_value_and_its_error():
    """F1 of POPE: the standard error of the scores is that of the bootstrap."""
    drawn = np.random.default_rng(5)
    right = drawn.random(400) < 0.5
    said = np.where(drawn.random(400) < 0.8, right, ~right)
    words = {True: "yes", False: "no"}
    parts = POPE().score(asked([words[bool(r)] for r in right]), [words[bool(s)] for s in said])
    scores = score_groups(POPE().compute, sum_by_group(parts, [f"{n:03d}" for n in range(400)]))["pope_f1_score"]

    def f1(chosen):
        return 2 * (right & said)[chosen].sum() / (right[chosen].sum() + said[chosen].sum())

    assert scores.mean() == pytest.approx(f1(np.arange(400)))
    error = np.std([f1(drawn.integers(0, 400, 400)) for _ in range(4000)])
    assert scores.std(ddof=1) / 20 == pytest.approx(error, rel=0.05)


def test_the_mean_of_three_seeds_has_student_s_interval():
    """0.51, 0.508, 0.596 minus 0.43, 0.453, 0.537: +0.0647 and 4.302653 (t at 0.975, 2 d.f.) x 0.00775 about it."""
    found = mean_over_seeds([0.510 - 0.430, 0.508 - 0.453, 0.596 - 0.537])
    assert found["value"] == pytest.approx(0.0647, abs=1e-4) and found["n"] == 3
    assert found["ci95"] == pytest.approx([0.0313, 0.0980], abs=1e-4)


def test_one_seed_or_equal_seeds_have_no_interval():
    assert mean_over_seeds([0.5]) == {"value": 0.5, "ci95": None, "n": 1}
    assert mean_over_seeds([0.5, 0.5]) == {"value": 0.5, "ci95": None, "n": 2}


def test_wins_have_wilson_s_interval():
    found = count_wins([0.1] * 7 + [-0.1] * 3)
    known = stats.binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert found["ci95"] == pytest.approx([known.low, known.high]) and (found["won"], found["n"]) == (7, 10)
    assert count_wins([0.0, 0.1])["won"] == 1.5


def test_holm_by_hand():
    assert adjust_for_family([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_for_family([]) == []
