"""Estimates from strata against the exact interval, enumeration, and samples drawn again and again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from cal_cli.statistics.shares import Strata, compute_posterior, estimate_share


def make_strata(size, judged, wrong, rate=0.5):
    return Strata(*map(np.array, (size, judged, wrong)), np.full(len(size), rate))


def test_one_large_stratum_has_the_exact_interval():
    value, low, high = make_strata([10**9], [40], [7]).estimate_sum(np.ones(1))
    exact = stats.binomtest(7, 40).proportion_ci(0.95, method="exact")
    assert np.allclose(np.array([value, low, high]) / 10**9, [7 / 40, exact.low, exact.high], atol=1e-6)


def test_what_was_judged_entirely_is_known():
    assert make_strata([20, 30], [20, 30], [3, 0]).estimate_sum(np.ones(2)) == (3, 3, 3)
    assert make_strata([20, 30], [20, 30], [3, 1]).estimate_share(np.array([True, False])) == {
        "value": pytest.approx(0.75),
        "ci95": pytest.approx([0.75, 0.75]),
    }


def test_of_a_stratum_without_a_judgement_nothing_is_known():
    value, low, high = make_strata([10, 50], [10, 0], [4, 0], rate=0.2).estimate_sum(np.ones(2))
    assert (value, low, high) == (14, 4, 54)
    value, low, high = make_strata([5, 5, 5], [0, 0, 0], [0, 0, 0]).estimate_sum(np.ones(3))
    assert (low, high) == (0, 15)


STRATA = st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=5)


@given(STRATA, st.lists(st.floats(-2, 2), min_size=5, max_size=5))
def test_limits_enclose_the_estimate_and_what_was_seen(rows, coefficients):
    size = [size for size, _, _ in rows]
    judged = [min(judged, size) for size, judged, _ in rows]
    wrong = [min(wrong, n) for (_, _, wrong), n in zip(rows, judged, strict=True)]
    strata = make_strata(size, judged, wrong)
    total, low, high = strata.bound_totals()
    assert (low >= wrong).all() and (high <= np.array(size) - judged + wrong).all()
    assert (low <= total + 1e-9).all() and (total <= high + 1e-9).all()
    value, least, most = strata.estimate_sum(np.array(coefficients[: len(size)]))
    assert least <= value <= most
    assert value == pytest.approx(float(np.dot(coefficients[: len(size)], total)))


@pytest.mark.slow
def test_a_share_s_limits_are_those_of_a_search_over_shares():
    strata, chosen = make_strata([30, 400], [30, 25], [21, 2]), np.array([True, False])
    grid = np.linspace(0, 1, 20_001)
    sums = np.array([strata.estimate_sum(chosen - share) for share in grid])
    possible = grid[(sums[:, 1] <= 0) & (sums[:, 2] >= 0)]
    found = strata.estimate_share(chosen)
    assert found["ci95"] == pytest.approx([possible[0], possible[-1]], abs=1e-4)
    assert found["value"] == pytest.approx(21 / (21 + 32))


RATIOS = st.lists(st.floats(-30, 30), min_size=1, max_size=40).map(np.array)


def negative_log_likelihood(share, ratios):
    return -np.logaddexp(np.log1p(-share) + ratios, np.log(share)).sum()


@given(RATIOS)
def test_no_other_share_is_more_likely(ratios):
    found = estimate_share(ratios)["value"]
    other = optimize.minimize_scalar(negative_log_likelihood, bounds=(1e-9, 1 - 1e-9), args=(ratios,), method="bounded")
    assert 0 <= found <= 1
    nearest = min(max(found, 1e-9), 1 - 1e-9)
    assert negative_log_likelihood(nearest, ratios) <= other.fun + 1e-6 * (1 + abs(other.fun))


@given(RATIOS, st.floats(0.01, 0.99))
def test_the_posterior_is_bayes_rule(ratios, share):
    expected = share / (share + (1 - share) * np.exp(ratios))
    assert np.allclose(compute_posterior(ratios, share), expected)


def test_the_interval_holds_the_share_as_often_as_it_promises():
    rng, share, held = np.random.default_rng(0), 0.2, 0
    for _ in range(400):
        from_q = rng.random(500) < share
        x = rng.normal(np.where(from_q, -1.0, 1.0))
        ratios = stats.norm.logpdf(x, 1) - stats.norm.logpdf(x, -1)
        low, high = estimate_share(ratios)["ci95"]
        held += low <= share <= high
    assert stats.binomtest(held, 400, 0.95).pvalue > 0.01


def test_dependent_items_widen_the_interval():
    rng = np.random.default_rng(0)
    ratios = rng.normal(0, 2, 300)
    once = estimate_share(ratios)
    repeated = estimate_share(ratios.repeat(4), np.arange(300).repeat(4))
    assert repeated["value"] == pytest.approx(once["value"])
    assert repeated["ci95"] == pytest.approx(once["ci95"])
    narrow = estimate_share(ratios.repeat(4))["ci95"]
    assert narrow[1] - narrow[0] == pytest.approx((once["ci95"][1] - once["ci95"][0]) / 2)


def test_extremes_stay_within_bounds():
    assert estimate_share(np.full(5, 1e6)) == {"value": 0.0, "ci95": [0.0, pytest.approx(0.877, abs=0.01)], "n": 5}
    assert estimate_share(np.full(5, -1e6))["value"] == pytest.approx(1.0)
    assert estimate_share(np.array([3.0]))["ci95"] is None
    assert estimate_share(np.zeros(9))["ci95"] == [0.0, 1.0]
    for wrong in (np.array([]), np.array([np.nan])):
        with pytest.raises(ValueError, match="log_ratios"):
            estimate_share(wrong)
