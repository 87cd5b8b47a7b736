"""The posterior: the likelihood that it comes from, its estimates, and what it does where they mean nothing."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.objective.rules import MismatchPosterior, ProbabilityRatio, TokenScores


@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 2)), min_size=1, max_size=8),
    st.floats(0.01, 0.9),
    st.floats(0.01, 0.9),
)
def test_the_posterior_is_the_gradient_of_the_mixture_s_likelihood(tokens, rho, r):
    logits = torch.tensor([one[0] for one in tokens], dtype=torch.float64, requires_grad=True)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(torch.tensor([one[1] for one in tokens], dtype=torch.float64))
    rows = torch.tensor([one[2] for one in tokens])
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows.unique():
        p, q = log_p[rows == row].exp(), log_q[rows == row].exp()
        loss = loss - ((1 - rho) * ((1 - r) * p + r * q).prod() + rho * q.prod()).log()
    (expected,) = torch.autograd.grad(loss, logits, retain_graph=True)
    with torch.no_grad():
        weights = MismatchPosterior(rho=rho, r=r, estimated=False)(TokenScores(log_p, log_q, rows))
    (found,) = torch.autograd.grad((-log_p * weights).sum(), logits)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)


def test_a_neutral_text_keeps_its_weight():
    scores = TokenScores(torch.zeros(4), torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    assert torch.equal(ProbabilityRatio()(scores), torch.ones(4))
    torch.testing.assert_close(
        MismatchPosterior(rho=0.3, r=0.05, estimated=False)(scores), torch.full((4,), 0.95 * 0.7)
    )


def draw_mixture(rho, r, samples=400, words=6):
    """Log-probabilities of texts of which a share belongs to other pictures, and of the others some words do not."""
    generator = torch.Generator().manual_seed(0)
    mismatched = torch.rand(samples, 1, generator=generator) < rho
    independent = mismatched | (torch.rand(samples, words, generator=generator) < r)
    # two words are possible, one of which the image makes probable
    probable = torch.where(independent, torch.rand(samples, words, generator=generator) < 0.5, True)
    probable = torch.where(independent, probable, torch.rand(samples, words, generator=generator) < 0.9)
    with_image = torch.where(probable, 0.9, 0.1).log().flatten()
    rows = torch.arange(samples).repeat_interleave(words)
    return TokenScores(with_image, torch.full_like(with_image, 0.5).log(), rows)


@pytest.mark.parametrize(("rho", "r"), [(0.0, 0.0), (0.3, 0.0), (0.5, 0.0), (0.3, 0.2)])
def test_the_estimates_find_the_shares(rho, r):
    scores, rule = draw_mixture(rho, r), MismatchPosterior(r=0.05 if r else 0.0)
    for _ in range(600):
        rule = rule.learn(rule.measure(scores))
    assert rule.rho == pytest.approx(rho, abs=0.06)
    assert rule.r == pytest.approx(r, abs=0.06)
    halves = [scores[:1200], scores[1200:]]
    whole = MismatchPosterior().measure(scores)
    torch.testing.assert_close(sum(MismatchPosterior().measure(half) for half in halves), whole)


def test_a_model_that_does_not_use_its_images_keeps_plain_cross_entropy():
    hurt = TokenScores(torch.full((40,), -3.0), torch.full((40,), -1.0), torch.arange(40) // 4)
    rule = MismatchPosterior(rho=0.1, r=0.05)
    for _ in range(200):
        assert torch.equal(rule(hurt), torch.ones(40))
        rule = rule.learn(rule.measure(hurt))
    assert (rule.rho, rule.r) == (0.1, 0.05)
    aligned = draw_mixture(0.3, 0.2)
    for _ in range(600):
        rule = rule.learn(rule.measure(aligned))
    assert rule.rho == pytest.approx(0.3, abs=0.06) and rule(aligned).min() < 0.1
    assert MismatchPosterior(estimated=False).measure(hurt) is None
    assert MismatchPosterior().restore(rule.state) == rule


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rho": 1.0}, "below 1"),
        ({"r": -0.1}, "at least 0"),
        ({"temperature": 0}, "above 0"),
        ({"momentum": 1.0}, "below 1"),
    ],
)
def test_options_outside_their_range_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        MismatchPosterior(**options)
