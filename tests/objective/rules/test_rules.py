"""All rules by their formulas on random scores, within their bounds."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.objective.rules import (
    ClampedDifference,
    GivenWeights,
    LossMixture,
    LossTruncation,
    MismatchPosterior,
    NegativeDifference,
    ProbabilityPower,
    ProbabilityRatio,
    TextImprobability,
    TokenScores,
    TopExcess,
    VisualDependence,
    VisualInformationGain,
)
from tests.objective.rules.naive import mean, naive_weights


def learned(rule):
    """A rule on mean losses that has seen some."""
    losses = torch.cat([torch.linspace(0.5, 2, 30), torch.linspace(4, 6, 10)])
    return rule.learn(rule.measure(TokenScores(-losses, sample_index=torch.arange(40))))


RULES = [
    ClampedDifference("logprob", 0.0, 2.0),
    NegativeDifference(alpha=0.5, beta=2.0),
    GivenWeights(),
    ProbabilityPower(q=1.0),
    ProbabilityPower(q=0.7),
    ProbabilityRatio(upper=5.0),
    TextImprobability(),
    TopExcess(share=0.6),
    learned(LossTruncation(share=0.4, warmup=1)),
    learned(LossMixture(warmup=1)),
    MismatchPosterior(rho=0.3, r=0.05, estimated=False),
    MismatchPosterior(rho=0.5, r=0.0, estimated=False),
    MismatchPosterior(rho=0.0, r=0.2, estimated=False),
    MismatchPosterior(rho=0.3, r=0.05, temperature=3.0, estimated=False),
]
NAMES = [str(rule).split("histogram")[0] for rule in RULES]

TOKENS = st.lists(
    st.tuples(st.floats(-6, -0.01), st.floats(-6, -0.01), st.floats(0, 3), st.integers(0, 3)), min_size=1, max_size=12
)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(tokens=TOKENS)
def test_weights_are_those_of_the_formula(rule, tokens):
    tokens = sorted(tokens, key=lambda token: token[3])  # sample after sample
    sample = torch.tensor([token[3] for token in tokens])
    with_image, without_image, weights = (torch.tensor([token[n] for token in tokens]) for n in range(3))
    scores = TokenScores(with_image, without_image, sample, given=weights)
    rows = sample.tolist()
    expected = naive_weights(
        rule, with_image.double().exp().tolist(), without_image.double().exp().tolist(), weights.tolist(), rows
    )
    found = rule(scores)
    if isinstance(rule, LossTruncation):  # the mean of a sample may round to either side of the threshold
        means = [mean([-token[0] for token in tokens if token[3] == row]) for row in rows]
        clear = torch.tensor([abs(one - rule.threshold) > 1e-4 for one in means])
        found, expected = found[clear], torch.tensor(expected)[clear].tolist()
    if isinstance(rule, TopExcess):  # equal differences may be taken in any order
        assert found.sum() == math.ceil(0.6 * len(tokens))
        assert scores.delta[found.bool()].max() <= min(scores.delta[~found.bool()].tolist(), default=math.inf)
    else:
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
@given(tokens=st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0), st.integers(0, 3)), min_size=1, max_size=20))
def test_weights_are_finite_and_within_their_bounds(rule, tokens):
    with_image, without_image = (torch.tensor([one[n] for one in tokens]) for n in (0, 1))
    index = torch.tensor([one[2] for one in tokens])
    weights = rule(TokenScores(with_image, without_image, index, given=torch.ones(len(tokens))))
    top = {ProbabilityRatio: 5.0, ClampedDifference: 2.0, NegativeDifference: 2.0}.get(type(rule), 1.0)
    assert torch.isfinite(weights).all() and (weights >= 0).all() and (weights <= top + 1e-4).all()


@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_a_batch_without_images_is_no_error(rule):
    none, index = torch.zeros(0), torch.zeros(0, dtype=torch.long)
    assert rule(TokenScores(none, none, index, given=none)).shape == (0,)


@given(
    tokens=st.lists(st.tuples(st.floats(-3, 3), st.integers(0, 6)), min_size=1, max_size=30),
    share=st.sampled_from([0.3, 0.7, 1.0]),
)
def test_visual_information_gain_keeps_the_share_of_samples(tokens, share):
    gains, samples = torch.tensor([one[0] for one in tokens]), torch.tensor([one[1] for one in tokens])
    weights = VisualInformationGain(share=share)(TokenScores(gains, torch.zeros_like(gains), samples))
    means = {row: mean([one[0] for one in tokens if one[1] == row]) for row in set(samples.tolist())}
    ranked = sorted(means.values(), reverse=True)
    threshold = ranked[math.ceil(share * len(ranked)) - 1]
    for (gain, row), weight in zip(tokens, weights.tolist(), strict=True):
        if abs(gain - threshold) > 1e-5 and abs(means[row] - threshold) > 1e-5:
            assert weight == float(gain >= threshold and means[row] >= threshold)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ClampedDifference(score="odds"), "allowed are logit and logprob"),
        (lambda: ClampedDifference(alpha=2.0, beta=1.0), "must satisfy"),
        (lambda: ProbabilityPower(q=-1), "at least 0"),
        (lambda: ProbabilityRatio(upper=0), "above 0"),
        (lambda: TopExcess(share=0), "above 0"),
        (lambda: VisualInformationGain(share=1.5), "at most 1"),
    ],
)
def test_options_outside_their_range_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@given(
    tokens=st.lists(st.tuples(st.floats(0, 9), st.integers(0, 3)), min_size=1, max_size=20), share=st.floats(0.01, 1)
)
def test_dependence_keeps_the_same_fraction_of_each_text(tokens, share):
    divergence, texts = (torch.tensor(column) for column in zip(*tokens, strict=True))
    weights = VisualDependence(share)(TokenScores(divergence=divergence, sample_index=texts))
    for text in texts.unique():
        own = texts == text
        kept = weights[own] == 1
        assert kept.sum() == (torch.tensor(share) * own.sum()).ceil()
        assert set(weights.tolist()) <= {0.0, 1.0}
        assert kept.all() or divergence[own][kept].min() >= divergence[own][~kept].max()
