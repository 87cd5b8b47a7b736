"""What seeds say: by hand, and against scipy and statsmodels."""

import pytest
from scipy import stats

from cal_cli.statistics.seeds import adjust_for_family, count_wins, mean_over_seeds


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
