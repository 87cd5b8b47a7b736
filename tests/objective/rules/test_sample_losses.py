"""Rules on samples' mean losses: the running quantile, and the mixture of two Gaussians."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from cal_cli.objective.rules import LossMixture, LossTruncation, TokenScores
from cal_cli.objective.rules.sample_losses import fit_two_gaussians


def scores_of(losses):
    """Samples of two tokens with these mean losses."""
    each = torch.tensor(losses).repeat_interleave(2) * torch.tensor([0.5, 1.5]).repeat(len(losses))
    return TokenScores(-each, sample_index=torch.arange(len(losses)).repeat_interleave(2))


@given(st.lists(st.floats(0, 10), min_size=20, max_size=60), st.sampled_from([0.1, 0.4, 0.5]))
def test_the_threshold_is_the_quantile(losses, share):
    scores, rule = scores_of(losses), LossTruncation(share=share, warmup=1, momentum=0.0)
    assert torch.equal(rule(scores), torch.ones(2 * len(losses)))  # nothing is known yet
    rule = rule.learn(rule.measure(scores))
    expected = np.quantile(np.array(losses), 1 - share, method="inverted_cdf")
    assert rule.threshold == pytest.approx(expected, abs=0.0201)  # the width of a bin
    weights = rule(scores)[::2]
    clear = torch.tensor([abs(loss - expected) > 0.05 for loss in losses])
    assert torch.equal(weights[clear], (torch.tensor(losses) <= expected).float()[clear])


def test_earlier_steps_fade_and_a_warm_up_comes_first():
    low, high = scores_of([1.0] * 10), scores_of([5.0] * 10)
    rule = LossTruncation(share=0.4, warmup=3, momentum=0.5)
    for scores in (low, low):
        rule = rule.learn(rule.measure(scores))
        assert torch.equal(rule(high), torch.ones(20))
    rule = rule.learn(rule.measure(low))
    assert torch.equal(rule(high), torch.zeros(20))
    for _ in range(4):
        rule = rule.learn(rule.measure(high))
    assert torch.equal(rule(high), torch.ones(20))
    halves = [scores_of([1.0] * 5), scores_of([1.0] * 5)]
    assert torch.equal(sum(rule.measure(half) for half in halves), rule.measure(low))
    assert LossTruncation(share=0.4, warmup=3, momentum=0.5).restore(rule.state) == rule


def test_the_mixture_is_found():
    drawn = np.random.default_rng(0)
    losses = np.concatenate([drawn.normal(1.0, 0.2, 700), drawn.normal(3.0, 0.6, 300)])
    shares, means, variances = fit_two_gaussians(np.sort(losses), np.ones(len(losses)))
    assert shares == pytest.approx([0.7, 0.3], abs=0.03)
    assert means == pytest.approx([1.0, 3.0], abs=0.1)
    assert np.sqrt(variances) == pytest.approx([0.2, 0.6], abs=0.08)
    scores, rule = scores_of(losses.clip(0).tolist()), LossMixture(warmup=1)
    rule = rule.learn(rule.measure(scores))
    low, high = (share * norm(mean, std).pdf(losses) for share, mean, std in ((0.7, 1.0, 0.2), (0.3, 3.0, 0.6)))
    clear = np.abs(low - high) / (low + high) > 0.9
    np.testing.assert_allclose(rule(scores)[::2].numpy()[clear], (low / (low + high))[clear], atol=0.1)
    assert rule.estimates["low_loss_share"] == pytest.approx(0.7, abs=0.05)
    assert LossMixture(warmup=1).restore(rule.state) == rule


def test_fitting_raises_the_likelihood_to_a_fixed_point():
    drawn = np.random.default_rng(1)
    values = np.sort(np.concatenate([drawn.normal(0.5, 0.1, 60), drawn.normal(1.5, 0.5, 40)]))
    shares, means, variances = fit_two_gaussians(values, np.ones(100), iterations=500)
    density = [s * norm(m, np.sqrt(v)).pdf(values) for s, m, v in zip(shares, means, variances, strict=True)]
    members = density / np.sum(density, axis=0)
    assert members.mean(axis=1) == pytest.approx(shares, abs=1e-4)
    assert (members @ values) / members.sum(axis=1) == pytest.approx(means, abs=1e-4)


def test_equal_losses_and_broken_ones_break_nothing():
    scores, rule = scores_of([1.0] * 8), LossMixture(warmup=1)
    rule = rule.learn(rule.measure(scores))
    assert torch.isfinite(rule(scores)).all()
    broken = scores_of([float("nan"), float("inf"), 1.0])
    assert rule.measure(broken).sum() == 3


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: LossTruncation(share=0.0), "above 0"),
        (lambda: LossTruncation(share=1.0), "below 1"),
        (lambda: LossTruncation(warmup=0), "at least 1"),
        (lambda: LossMixture(momentum=1.0), "below 1"),
    ],
)
def test_options_outside_their_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()
