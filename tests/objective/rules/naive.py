"""The weight of each rule as its source writes it, in plain Python over tokens and samples."""

import math

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
    TopExcess,
)


def naive_weights(rule, p, q, given, rows):
    """The weights of tokens by the probability of each with and without the image.

    `p`, `q` and `given` are lists of numbers, `rows` the sample of each token.
    """
    if isinstance(rule, GivenWeights):
        return given
    if isinstance(rule, ProbabilityPower):
        return [one**rule.q for one in p]
    if isinstance(rule, ProbabilityRatio):
        return [min(one / other, rule.upper) for one, other in zip(p, q, strict=True)]
    if isinstance(rule, TextImprobability):
        return [1 - other for other in q]
    if isinstance(rule, NegativeDifference):
        p, q = q, p
    if isinstance(rule, ClampedDifference):
        return [min(max(math.log(one / other), rule.alpha), rule.beta) for one, other in zip(p, q, strict=True)]
    if isinstance(rule, TopExcess):
        excess = [-math.log(one) + math.log(other) for one, other in zip(p, q, strict=True)]
        kept = sorted(range(len(p)), key=lambda n: -excess[n])[: math.ceil(rule.share * len(p))]
        return [float(n in kept) for n in range(len(p))]
    if isinstance(rule, LossTruncation | LossMixture):
        means = {row: mean([-math.log(p[n]) for n in range(len(p)) if rows[n] == row]) for row in rows}
        return [naive_sample_weight(rule, means[row]) for row in rows]
    assert isinstance(rule, MismatchPosterior)
    rho, r = rule.rho, rule.r
    found = []
    for place in range(len(p)):
        same = [other for other in range(len(p)) if rows[other] == rows[place]]
        matched = math.prod(((1 - r) * p[n] / q[n] + r) ** (1 / rule.temperature) for n in same)
        text = (1 - rho) * matched / ((1 - rho) * matched + rho)
        token = (1 - r) * p[place] / ((1 - r) * p[place] + r * q[place])
        found.append(text * token)
    return found


def naive_sample_weight(rule, loss):
    if isinstance(rule, LossTruncation):
        return float(loss <= rule.threshold)
    shares, means, variances = rule.mixture
    low, high = (
        share * math.exp(-((loss - m) ** 2) / (2 * v)) / math.sqrt(2 * math.pi * v)
        for share, m, v in zip(shares, means, variances, strict=True)
    )
    return low / (low + high)


def mean(values):
    return sum(values) / len(values)
