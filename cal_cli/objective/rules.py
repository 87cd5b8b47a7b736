"""Weight rules: from the scores of label tokens to the weight of each token in the loss.

A rule knows nothing of models or batches. What it needs is in its attributes: the score that it reads, and whether it
reads one without the image too. `RuleLoss` computes these scores, pools the weights and normalises them.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

TRUST = 0.2  # least share of samples whose text is more probable with their picture, if the model uses pictures
LEAST = 1e-3  # of a share that is estimated, so that it can grow again


@dataclass
class TokenScores:
    """The scores of supervised label tokens; all fields are [tokens], in reading order, without gradient.

    Attributes:
        with_image: float32, the label's logit or log-probability given the image and the text before it.
        without_image: float32, the same score given the text alone, or whatever the image is compared with; None for a
            rule that does not contrast.
        sample_index: int64, the sample that each token belongs to.
    """

    with_image: Tensor
    without_image: Tensor | None
    sample_index: Tensor

    @property
    def delta(self) -> Tensor:
        """float32 [tokens], the score with the image minus the score without it."""
        assert self.without_image is not None
        return self.with_image - self.without_image


class WeightRule:
    """A rule: `weights = rule(scores)`, float32 [tokens].

    Attributes:
        score: what it reads, `logit` or `logprob`.
        contrasts: whether it reads `without_image`; it is then given only the tokens of samples with an image, and the
            others have weight 1.
        estimates: what the rule estimates from the data while training, by name; empty for most rules.
    """

    score: ClassVar[str] = "logprob"
    contrasts: ClassVar[bool] = True

    @property
    def estimates(self) -> dict[str, float]:
        return {}

    def measure(self, scores: TokenScores) -> Tensor | None:
        """Return what `learn` needs of a batch, float32 [any], summable over batches; None if nothing is estimated."""
        return None

    def learn(self, measured: Tensor) -> "WeightRule":
        """Return the rule with its estimates after an optimizer step, in whose batches the sum was `measured`."""
        return self

    def restore(self, estimates: dict[str, float]) -> "WeightRule":
        """Return the rule with given estimates."""
        return replace(self, **estimates) if estimates else self  # type: ignore[type-var]

    def __call__(self, scores: TokenScores) -> Tensor:
        """Compute the weights, float32 [tokens]."""
        raise NotImplementedError


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
        >>> scores = TokenScores(torch.tensor([0.5, 0.01]).log(), None, torch.tensor([0, 0]))
        >>> ProbabilityPower(q=1.0)(scores)
        tensor([0.5000, 0.0100])
    """

    contrasts: ClassVar[bool] = False
    q: float = 0.7

    def __post_init__(self) -> None:
        if not 0 <= self.q < math.inf:
            raise ValueError(f"q={self.q}: the power must be at least 0")

    def __call__(self, scores: TokenScores) -> Tensor:
        return (self.q * scores.with_image).exp()


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
        >>> ProbabilityRatio(upper=5.0)(TokenScores(shown.log(), hidden.log(), torch.zeros(3)))
        tensor([5.0000, 1.0000, 0.1250])
    """

    upper: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.upper < math.inf:
            raise ValueError(f"upper={self.upper}: the largest weight must be above 0")

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.delta.clamp(max=math.log(self.upper)).exp()


@dataclass(frozen=True)
class MismatchPosterior(WeightRule):
    """The probability that a token was written for its picture, under a noise model with two levels.

    A share `rho` of the texts belongs to other pictures, and of the words of the others a share `r` does not depend on
    the picture. With p_t = p(t | image, text before) and q_t = p(t | text before),

        p(text | picture shown) = (1 - rho) prod_t [(1 - r) p_t + r q_t] + rho prod_t q_t.

    With q_t held fixed, the gradient of its negative logarithm is that of cross-entropy with the weights w = W w_t:

        w_t = sigmoid(log(p_t / q_t) + log((1 - r) / r))
        W = sigmoid(sum_t log[(1 - r) p_t / q_t + r] / temperature + log((1 - rho) / rho)), the same for a whole sample.

    While training, both shares are estimated by expectation maximisation: after each optimizer step they move towards
    the step's mean of 1 - W, and of 1 - w_t over tokens weighted by W. A model that does not use its images yet would
    take all texts for mismatched. So every weight is 1 and nothing is estimated as long as the texts of nearly all
    samples are less probable with their picture than without it: while the running share of samples with a positive
    sum of log(p_t / q_t) is at most `TRUST`. It starts at 0, so training starts as plain cross-entropy.

    Args:
        rho: share of the texts, in [0, 1), or its first estimate; 0 switches the upper level off.
        r: share of the words, in [0, 1), or its first estimate; 0 switches the lower level off.
        temperature: divides the sum over a sample, whose terms are correlated; 1 is the likelihood itself.
        estimated: whether `rho` and `r` are estimated while training.
        momentum: how much of an estimate remains after a step, in [0, 1).
        supported: running share of the samples whose text is more probable with the picture, in [0, 1].

    Raises:
        ValueError: a value outside its range.

    Source: ours. Related: mixtures fitted to losses (arXiv 2002.07394), visual information gain (arXiv 2602.17186).

    Example:
        >>> scores = TokenScores(torch.tensor([0.9, 0.1]).log(), torch.tensor([0.1, 0.9]).log(), torch.tensor([0, 1]))
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
    def estimates(self) -> dict[str, float]:
        names = ("rho", "r", "supported") if self.estimated else ()
        return {name: getattr(self, name) for name in names}

    def __call__(self, scores: TokenScores) -> Tensor:
        if self.estimated and self.supported <= TRUST:
            return torch.ones_like(scores.with_image)
        tokens, samples, member = self._compute_posteriors(scores)
        return tokens * samples[member]

    def measure(self, scores: TokenScores) -> Tensor | None:
        if not self.estimated:
            return None
        tokens, samples, member = self._compute_posteriors(scores)
        sums = scores.delta.new_zeros(len(samples)).index_add(0, member, scores.delta)
        parts = [(1 - samples).sum(), (samples[member] * (1 - tokens)).sum(), samples[member].sum(), (sums > 0).sum()]
        return torch.stack([*(part.float() for part in parts), sums.new_tensor(len(samples))])

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

    def _move(self, before: float, found: float) -> float:
        return min(max(self.momentum * before + (1 - self.momentum) * found, LEAST), 1 - LEAST)

    def _compute_posteriors(self, scores: TokenScores) -> tuple[Tensor, Tensor, Tensor]:
        """Compute w_t, float32 [tokens], and W, float32 [samples], and the sample of each token, int64 [tokens]."""
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
