"""What seeds say: by hand, by brute force, and by simulation."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.power import TTestPower

from cal_cli.statistics.seeds import (
    adjust_for_family,
    count_wins,
    difference_over_seeds,
    find_detectable_difference,
    find_needed_seeds,
    mean_over_seeds,
    run_sign_flip_test,
)


def test_the_mean_of_three_seeds_has_student_s_interval():
    """0.51, 0.508, 0.596 minus 0.43, 0.453, 0.537: +0.0647 and 4.302653 (t at 0.975, 2 d.f.) x 0.00775 about it."""
    ce, cal = {0: 0.430, 1: 0.453, 2: 0.537}, {0: 0.510, 1: 0.508, 2: 0.596}
    difference = difference_over_seeds(cal, ce)
    assert difference["value"] == pytest.approx(0.0647, abs=1e-4)
    assert difference["ci95"] == pytest.approx([0.0313, 0.0980], abs=1e-4)
    assert difference["n"] == 3
    assert difference["p"] == pytest.approx(0.25)  # two of eight flips
    assert difference["wins"]["won"] == 3


def test_one_seed_has_no_interval_and_no_test():
    assert mean_over_seeds([0.5]) == {"value": 0.5, "ci95": None, "n": 1}
    found = difference_over_seeds({0: 0.5}, {0: 0.25, 1: 0.1})
    assert (found["value"], found["ci95"], found["n"]) == (0.25, None, 1)
    assert (found["p"], found["detectable"], found["spread"]) == (1.0, None, None)
    assert difference_over_seeds({0: 0.5}, {1: 0.25}) is None


@given(st.lists(st.integers(-8, 8), min_size=2, max_size=9))
def test_the_sign_flip_test_counts_all_flips(differences):
    seen = abs(sum(differences))
    flips = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True))) >= seen
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    assert run_sign_flip_test([d / 8 for d in differences]) == pytest.approx(min(1.0, np.mean(flips)), abs=1e-9)


def test_the_smallest_p_is_that_of_the_number_of_seeds():
    for n in (3, 5, 10):
        assert run_sign_flip_test([0.1 + 0.01 * k for k in range(n)]) == pytest.approx(2 / 2**n)


def test_wins_have_wilson_s_interval():
    found = count_wins([0.1] * 7 + [-0.1] * 3)
    known = stats.binomtest(7, 10).proportion_ci(0.95, method="wilson")
    assert found["ci95"] == pytest.approx([known.low, known.high]) and (found["won"], found["n"]) == (7, 10)
    assert count_wins([0.0, 0.1])["won"] == 1.5


def test_a_detectable_difference_is_detected_four_times_in_five():
    differences = np.random.default_rng(0).normal(0, 0.03, 8)
    size, spread = find_detectable_difference(differences), differences.std(ddof=1)
    drawn = np.random.default_rng(1).normal(size, spread, (20_000, 8))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.01)
    assert find_detectable_difference([0.1, 0.2]) is None and find_detectable_difference([0.1] * 4) is None
    n = find_needed_seeds(spread, size)
    assert n == 8
    drawn = np.random.default_rng(2).normal(0.5 * size, spread, (20_000, find_needed_seeds(spread, 0.5 * size)))
    assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.8, abs=0.02)


@pytest.mark.parametrize("effect", [3.2, 3.0, 2.0, 1.0, 0.4, 0.01])
def test_needed_seeds_are_the_fewest_with_the_power(effect):
    n = find_needed_seeds(0.01, effect * 0.01)
    power = [TTestPower().power(effect, nobs=seeds, alpha=0.05) for seeds in (n - 1, n)]
    assert power[0] < 0.8 <= power[1]


@pytest.mark.parametrize("effect", [3.3, 4.75, 0.05 / 0.008807128423482215, 8.0, 50.0])
def test_three_seeds_show_an_effect_so_large_that_scipy_has_no_power_for_it(effect):
    assert find_needed_seeds(0.01, effect * 0.01) == 3


def test_holm_by_hand():
    assert adjust_for_family([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert adjust_for_family([]) == []
