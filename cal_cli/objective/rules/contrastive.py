"""Rules that compare a token's score with the image and without it, token by token."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from cal_cli.objective.rules.base import TokenScores, WeightRule
from cal_cli.objective.weights import check_bounds, clamp_delta

SCORES = ("logit", "logprob")


@dataclass(frozen=True)
class ClampedDifference(WeightRule):
    """w = clamp(delta, alpha, beta): CAL, where delta is the logit with the image minus the logit without it.

    Args:
        score: `logit` (the paper) or `logprob`.
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.

    Raises:
        ValueError: an unknown score, or bounds outside their range.

    Source: arXiv 2405.17871, Algorithm 1, step 3.

    Example:
        >>> ClampedDifference()(TokenScores(torch.tensor([2.0, 9.0, 1.0]), torch.tensor([0.0, 0.0, 5.0])))
        tensor([2., 5., 1.])
    """

    score: str = "logit"  # type: ignore[misc]
    alpha: float = 1.0
    beta: float = 5.0

    def __post_init__(self) -> None:
        check_bounds(self.alpha, self.beta)
        if self.score not in SCORES:
            raise ValueError(f"score={self.score}: allowed are {' and '.join(SCORES)}")

    def __call__(self, scores: TokenScores) -> Tensor:
        return clamp_delta(scores.delta, self.alpha, self.beta)

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        return {"share_at_alpha": delta <= self.alpha, "share_at_beta": delta >= self.beta}


@dataclass(frozen=True)
class ProbabilityRatio(WeightRule):
    """w = min(p(t | image) / p(t), upper): 1 for a token that the image does not change, 0 for one it rules out.

    Args:
        upper: the largest weight, above 0.

    Raises:
        ValueError: an upper bound that is not above 0.

    Source: ours; the clamp is CAL's upper bound (arXiv 2405.17871), the difference of log-probabilities is the visual
    information gain of arXiv 2602.17186.

    Example:
        >>> shown, hidden = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.8])
        >>> ProbabilityRatio(upper=5.0)(TokenScores(shown.log(), hidden.log()))
        tensor([5.0000, 1.0000, 0.1250])
    """

    upper: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.upper < math.inf:
            raise ValueError(f"upper={self.upper}: the largest weight must be above 0")

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.delta.clamp(max=math.log(self.upper)).exp()


@dataclass(frozen=True)
class TextImprobability(WeightRule):
    """w = 1 - P_reference(t | text before): PRIOR, where a token that the text alone predicts counts little.

    Source: Chen et al., "Prioritizing Image-Related Tokens Enhances Vision-Language Pre-Training", arXiv 2505.08971.

    Example:
        >>> TextImprobability()(TokenScores(without_image=torch.tensor([0.9, 0.1]).log()))
        tensor([0.1000, 0.9000])
    """

    reads: ClassVar[tuple[str, ...]] = ("without_image",)
    contrast: ClassVar[str] = "reference"

    def __call__(self, scores: TokenScores) -> Tensor:
        return 1 - scores.without_image.exp()


@dataclass(frozen=True)
class TopExcess(WeightRule):
    """w = 1 for the share of the batch's tokens with the largest loss minus reference loss, else 0.

    This is selective language modelling (Rho-1), here with a reference that reads the text alone. The number of tokens
    is rounded up.

    Args:
        share: share of the tokens that count, above 0 and at most 1; 0.6 is that of Rho-1's smaller model.

    Raises:
        ValueError: a share outside its range.

    Source: Lin et al., "Rho-1: Not All Tokens Are What You Need", arXiv 2404.07965, equations 3 to 5.

    Example:
        >>> shown, hidden = torch.tensor([0.9, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.8])
        >>> TopExcess(share=0.5)(TokenScores(shown.log(), hidden.log()))
        tensor([0., 1., 1.])
    """

    contrast: ClassVar[str] = "reference"
    mixes_samples: ClassVar[bool] = True
    share: float = 0.6

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, scores: TokenScores) -> Tensor:
        kept = scores.delta.argsort(stable=True)[: math.ceil(self.share * len(scores.delta))]
        return torch.zeros_like(scores.delta).index_fill(0, kept, 1.0)


@dataclass(frozen=True)
class VisualInformationGain(WeightRule):
    """w = 1 for the tokens and samples that gain most from the image, else 0, chosen once before training.

    The gain of a token is log p(t | image) - log p(t | blurred image), that of a sample its tokens' mean. A threshold
    keeps the given share of samples; the tokens of the others, and tokens below the same threshold, have weight 0.

    Args:
        share: share of the samples with an image that are kept, above 0 and at most 1.

    Raises:
        ValueError: a share outside its range.

    Source: Lee and Hwang, "Selective Training for Large Vision Language Models via Visual Information Gain",
    arXiv 2602.17186.

    Example:
        >>> gain, sample = torch.tensor([3.0, 0.1, 0.2, 0.0]), torch.tensor([0, 0, 1, 1])
        >>> VisualInformationGain(share=0.5)(TokenScores(gain, torch.zeros(4), sample))
        tensor([1., 0., 0., 0.])
    """

    contrast: ClassVar[str] = "blur"
    once: ClassVar[bool] = True
    share: float = 0.7

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, scores: TokenScores) -> Tensor:
        if not len(scores.delta):
            return torch.zeros_like(scores.delta)
        indices, member = scores.sample_index.unique(return_inverse=True)
        gains = average_by(scores.delta, member, len(indices))
        threshold = gains.sort(descending=True).values[math.ceil(self.share * len(gains)) - 1]
        return ((scores.delta >= threshold) & (gains >= threshold)[member]).float()


def average_by(values: Tensor, member: Tensor, groups: int) -> Tensor:
    """Return the mean of the values of each group, float32 [groups]; `member` is int64 [values]."""
    sums = values.new_zeros(groups).index_add(0, member, values)
    return sums / values.new_zeros(groups).index_add(0, member, torch.ones_like(values))


def check_share(share: float) -> None:
    """Raise ValueError unless the share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: must be above 0 and at most 1")
