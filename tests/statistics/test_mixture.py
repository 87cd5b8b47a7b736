"""The share of a mixture against a general optimiser, a simulation, and what is known of single items."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from cal_cli.statistics.mixture import compute_posterior, estimate_share

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
