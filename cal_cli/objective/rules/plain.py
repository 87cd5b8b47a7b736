"""Rules that need no contrast: the token's own probability, and weights that come with the data."""

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from cal_cli.objective.rules.base import TokenScores, WeightRule


@dataclass(frozen=True)
class ProbabilityPower(WeightRule):
    """w = p(t)^q: a token that the model finds improbable counts little, whether it is noise or merely hard.

    With q = 1 this is dynamic fine-tuning (DFT, Wu et al. 2025, arXiv 2508.05629); with q = 0.7 the gradient is that of
    generalised cross-entropy, (1 - p^q) / q (GCE, Zhang and Sabuncu 2018, arXiv 1805.07836). Both divide the loss by
    the number of tokens (`normalization="tokens"`).

    Args:
        q: the power, at least 0; 0 is plain cross-entropy.

    Raises:
        ValueError: a negative power.

    Example:
        >>> import torch
        >>> ProbabilityPower(q=1.0)(TokenScores(torch.tensor([0.5, 0.01]).log()))
        tensor([0.5000, 0.0100])
    """

    reads: ClassVar[tuple[str, ...]] = ("with_image",)
    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.q < math.inf:
            raise ValueError(f"q={self.q}: the power must be at least 0")

    def __call__(self, scores: TokenScores) -> Tensor:
        return (self.q * scores.with_image).exp()


@dataclass(frozen=True)
class GivenWeights(WeightRule):
    """w = the data's own `loss_weights`: a number for each answer or each of its tokens, 1 where a sample has none.

    Example:
        >>> import torch
        >>> GivenWeights()(TokenScores(given=torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """

    reads: ClassVar[tuple[str, ...]] = ("given",)

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.given
