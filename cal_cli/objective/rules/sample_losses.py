"""Rules that distrust samples with a high mean loss, without any contrast.

Both remember the mean losses of the samples of the last steps, as a histogram that decays from step to step. A sum of
histograms is the histogram of all micro-batches and processes of a step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cal_cli.objective.rules.base import TokenScores, WeightRule, average_by, check_share

WIDTH, BINS = 0.02, 1000  # of the histogram, in nats: mean losses from 0 to 20
FLOOR = 5e-4  # least variance of a component, as in DivideMix's code


@dataclass(frozen=True)
class SampleLossRule(WeightRule):
    """A rule that judges a sample by its mean loss, relative to those of the last steps.

    Args:
        warmup: number of optimizer steps in which every weight is 1.
        momentum: how much of the histogram remains after a step, in [0, 1); 0.9 remembers some 10 steps.
        steps: optimizer steps so far.
        histogram: decayed counts of the samples' mean losses, [BINS]; empty before the first step.

    Raises ValueError for a value outside its range.
    """

    reads: ClassVar[tuple[str, ...]] = ("with_image",)
    warmup: int = 10
    momentum: float = 0.9
    steps: int = 0
    histogram: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.warmup < 1:
            raise ValueError(f"warmup={self.warmup}: must be at least 1 optimizer step")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: must be at least 0 and below 1")

    @property
    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "histogram": list(self.histogram)}

    @property
    def estimates(self) -> dict[str, float]:
        return {}

    def restore(self, state: dict[str, Any]) -> SampleLossRule:
        return replace(self, **{**state, "histogram": tuple(state["histogram"])}) if state else self

    def measure(self, scores: TokenScores) -> Tensor:
        losses, _ = average_losses(scores)
        bins = (losses.nan_to_num() / WIDTH).long().clamp(0, BINS - 1)
        return torch.zeros(BINS, device=losses.device).index_add(0, bins, torch.ones_like(losses))

    def learn(self, measured: Tensor) -> SampleLossRule:
        before = np.array(self.histogram or np.zeros(BINS))
        counts = self.momentum * before + measured.double().cpu().numpy()
        return replace(self, steps=self.steps + 1, histogram=tuple(counts.tolist()))

    def weigh_samples(self, losses: Tensor) -> Tensor:
        """Compute the weights of samples, float32 [samples], from their mean losses, float32 [samples]."""
        raise NotImplementedError

    def __call__(self, scores: TokenScores) -> Tensor:
        if self.steps < self.warmup:
            return torch.ones_like(scores.with_image)
        losses, member = average_losses(scores)
        return self.weigh_samples(losses)[member]


@dataclass(frozen=True)
class LossTruncation(SampleLossRule):
    """w = 0 for the fraction of samples with the highest mean loss, by a running quantile, else 1.

    Args:
        share: share of the samples to leave out, above 0 and below 1.

    Raises ValueError for a share outside its range.

    Source: Kang and Hashimoto, "Improved Natural Language Generation via Loss Truncation", arXiv 2004.14589. Its
    quantile is that of the last samples too, after a start without truncation.

    Example:
        >>> rule = LossTruncation(share=0.5, warmup=1)
        >>> scores = TokenScores(torch.tensor([-0.1, -0.3, -5.0]), sample_index=torch.tensor([0, 0, 1]))
        >>> rule.learn(rule.measure(scores))(scores)
        tensor([1., 1., 0.])
    """

    share: float = 0.4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_share(self.share)
        if self.share == 1:
            raise ValueError(f"share={self.share}: leaves nothing to train on; it must be below 1")

    @cached_property
    def threshold(self) -> float:
        """The mean loss, in nats, above which a sample is left out; inf before the first step."""
        counts = np.cumsum(self.histogram)
        if not len(counts) or not counts[-1]:
            return math.inf
        wanted = (1 - self.share) * counts[-1]
        place = int(np.searchsorted(counts, wanted))
        below = counts[place - 1] if place else 0.0
        return float(WIDTH * (place + (wanted - below) / (counts[place] - below)))

    @property
    def estimates(self) -> dict[str, float]:
        return {"loss_threshold": self.threshold} if self.steps else {}

    def weigh_samples(self, losses: Tensor) -> Tensor:
        return (losses <= self.threshold).float()


@dataclass(frozen=True)
class LossMixture(SampleLossRule):
    """w = the probability that a sample's mean loss belongs to the lower of two Gaussians, fitted after each step.

    Source: Li, Socher and Hoi, "DivideMix", arXiv 2002.07394, section 3.1, which fits them after each epoch.

    Example:
        >>> rule = LossMixture(warmup=1)
        >>> losses = torch.tensor([0.1, 0.2, 0.3, 5.0, 5.2])
        >>> scores = TokenScores(-losses, sample_index=torch.arange(5))
        >>> rule.learn(rule.measure(scores))(scores)
        tensor([1., 1., 1., 0., 0.])
    """

    @cached_property
    def mixture(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Shares, means and variances of the two components, the lower first."""
        return fit_two_gaussians((np.arange(BINS) + 0.5) * WIDTH, np.array(self.histogram))

    @property
    def estimates(self) -> dict[str, float]:
        if not self.steps:
            return {}
        shares, means, _ = self.mixture
        return {"low_loss_share": float(shares[0]), "low_loss_mean": means[0], "high_loss_mean": means[1]}

    def weigh_samples(self, losses: Tensor) -> Tensor:
        shares, means, variances = self.mixture
        values = losses.double().cpu().numpy()
        return torch.from_numpy(compute_posteriors(values, shares, means, variances)[0]).to(losses)


def average_losses(scores: TokenScores) -> tuple[Tensor, Tensor]:
    """Return the mean loss of each sample, float32 [samples], and the sample of each token, int64 [tokens]."""
    indices, member = scores.sample_index.unique(return_inverse=True)
    return average_by(-scores.with_image, member, len(indices)), member


def compute_posteriors(values: np.ndarray, shares: np.ndarray, means: np.ndarray, variances: np.ndarray) -> np.ndarray:
    """Compute the probability of each of two Gaussians given values: float64 [2, values]."""
    logs = np.log(shares) - 0.5 * np.log(variances)
    logs = logs[:, None] - (values - means[:, None]) ** 2 / (2 * variances[:, None])
    powers = np.exp(logs - logs.max(axis=0))
    return powers / powers.sum(axis=0)


def fit_two_gaussians(
    values: np.ndarray, counts: np.ndarray, iterations: int = 50
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fit two Gaussians to values with counts by expectation maximisation, from their lower and upper half.

    Args:
        values: float64 [values], ascending.
        counts: float64 [values], at least 0, not all 0.
        iterations: steps of expectation maximisation.

    Returns shares, means and variances, float64 [2] each, the component with the lower mean first.
    """
    seen = counts > 0
    values, counts = values[seen], counts[seen]
    lower = np.cumsum(counts) - counts / 2 <= counts.sum() / 2
    members = np.stack([lower, ~lower]).astype(float)
    for _ in range(iterations):
        mass = members * counts
        total = np.maximum(mass.sum(axis=1), 1e-9)
        means = (mass * values).sum(axis=1) / total
        variances = (mass * (values - means[:, None]) ** 2).sum(axis=1) / total + FLOOR
        members = compute_posteriors(values, total / total.sum(), means, variances)
    order = np.argsort(means)
    return (total / total.sum())[order], means[order], variances[order]
