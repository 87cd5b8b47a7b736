"""The posterior probability that a token was written for its image."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.rules.base import TokenScores, WeightRule

TRUST = 0.2  # least share of texts that are more probable with their image, if the model uses images
LEAST = 1e-3  # of a share that is estimated, so that it can grow again


@dataclass(frozen=True)
class MismatchPosterior(WeightRule):
    """The probability that a token was written for its image, under a noise model with two levels.

    A share `rho` of the texts belongs to other images, and of the words of the others a share `r` does not depend on
    the image. With p_t = p(t | image, text before) and q_t = p(t | text before),

        p(text | image shown) = (1 - rho) prod_t [(1 - r) p_t + r q_t] + rho prod_t q_t.

    With q_t held fixed, the gradient of its negative logarithm is that of cross-entropy with the weights w = W w_t:

        w_t = sigmoid(log(p_t / q_t) + log((1 - r) / r))
        W = sigmoid(sum_t log[(1 - r) p_t / q_t + r] / temperature + log((1 - rho) / rho)), the same for a whole text.

    The text is all that the assistant says of a sample.

    While training, both shares are estimated by expectation maximisation: after each optimizer step they move towards
    the step's mean of 1 - W, and of 1 - w_t over tokens weighted by W. A model that does not use its images yet would
    take all texts for mismatched. So every weight is 1 and nothing is estimated as long as nearly all texts are less
    probable with their image than without it: while the running share of texts with a positive sum of log(p_t / q_t)
    is at most `TRUST`. It starts at 0, so training starts as plain cross-entropy.

    Args:
        rho: share of the texts, in [0, 1), or its first estimate; 0 switches the upper level off.
        r: share of the words, in [0, 1), or its first estimate; 0 switches the lower level off.
        temperature: divides the sum over a text, whose terms are correlated; 1 is the likelihood itself.
        estimated: whether `rho` and `r` are estimated while training.
        momentum: how much of an estimate remains after a step, in [0, 1).
        supported: running share of the texts that are more probable with the image, in [0, 1].

    Raises ValueError for a value outside its range.

    Source: ours. Related: mixtures fitted to losses (arXiv 2002.07394), visual information gain (arXiv 2602.17186).

    Example:
        >>> shown, hidden = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
        >>> scores = TokenScores(shown.log(), hidden.log(), sample_index=torch.tensor([0, 1]))
        >>> MismatchPosterior(rho=0.5, r=0.0, estimated=False)(scores)
        tensor([0.9000, 0.1000])
    """

    rho: float = 0.1
    r: float = 0.05
    temperature: float = 1.0
    estimated: bool = True
    momentum: float = 0.9
    supported: float = 0.0

    def __post_init__(self) -> None:
        for name in ("rho", "r", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: the share must be at least 0 and below 1")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: must be above 0")

    @property
    def state(self) -> dict[str, Any]:
        return self.estimates | {"supported": self.supported} if self.estimated else {}

    @property
    def estimates(self) -> dict[str, float]:
        return {"rho": self.rho, "r": self.r} if self.estimated else {}

    def __call__(self, scores: TokenScores) -> Tensor:
        if self.estimated and self.supported <= TRUST:
            return torch.ones_like(scores.with_image)
        tokens, texts, member = self._compute_posteriors(scores)
        return tokens * texts[member]

    def measure(self, scores: TokenScores) -> Tensor | None:
        if not self.estimated:
            return None
        tokens, texts, member = self._compute_posteriors(scores)
        sums = scores.delta.new_zeros(len(texts)).index_add(0, member, scores.delta)
        parts = [(1 - texts).sum(), (texts[member] * (1 - tokens)).sum(), texts[member].sum(), (sums > 0).sum()]
        return torch.stack([*(part.float() for part in parts), sums.new_tensor(len(texts))])

    def learn(self, measured: Tensor) -> "MismatchPosterior":
        mismatched, independent, matched, supported, count = measured.tolist()
        if not count:
            return self
        changed = replace(self, supported=self._move(self.supported, supported / count))
        if changed.supported <= TRUST:
            return changed
        rho = self._move(self.rho, mismatched / count)
        r = self._move(self.r, independent / max(matched, 1e-6))
        return replace(changed, rho=rho if self.rho else 0.0, r=r if self.r else 0.0)

    def _move(self, before: float, measured: float) -> float:
        return min(max(self.momentum * before + (1 - self.momentum) * measured, LEAST), 1 - LEAST)

    def _compute_posteriors(self, scores: TokenScores) -> tuple[Tensor, Tensor, Tensor]:
        """Compute w_t, float32 [tokens], W, float32 [texts], and the text of each token, int64 [tokens]."""
        delta = scores.delta
        tokens, evidence = torch.ones_like(delta), delta
        if self.r > 0:
            keep, other = math.log(1 - self.r), math.log(self.r)
            tokens = torch.sigmoid(delta + keep - other)
            evidence = F.softplus(delta + keep - other) + other  # log((1 - r) exp(delta) + r)
        indices, member = scores.sample_index.unique(return_inverse=True)
        if not self.rho > 0:
            return tokens, delta.new_ones(len(indices)), member
        total = delta.new_zeros(len(indices)).index_add(0, member, evidence) / self.temperature
        return tokens, torch.sigmoid(total + math.log((1 - self.rho) / self.rho)), member
