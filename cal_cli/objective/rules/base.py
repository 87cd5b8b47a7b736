"""What a weight rule is, and the rules that weigh token by token."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from cal_cli.objective.weights import check_bounds, clamp_delta


@dataclass
class TokenScores:
    """The scores of label tokens; all fields are [tokens], in reading order, without gradient.

    Fields that the rule does not read are None.

    Attributes:
        with_image: float32, the label's logit or log-probability given the image and the text before it.
        without_image: float32, the same score given the text alone, or whatever the image is compared with.
        sample_index: int64, the sample that each token belongs to.
        entropy: float32, the entropy of the prediction with the image, in nats.
        divergence: float32, the Kullback-Leibler divergence of the prediction with the image from that without.
        given: float32, the weights that come with the data.
    """

    with_image: Tensor = None  # type: ignore[assignment]
    without_image: Tensor = None  # type: ignore[assignment]
    sample_index: Tensor = None  # type: ignore[assignment]
    entropy: Tensor = None  # type: ignore[assignment]
    divergence: Tensor = None  # type: ignore[assignment]
    given: Tensor = None  # type: ignore[assignment]

    @property
    def delta(self) -> Tensor:
        """float32 [tokens], the score with the image minus the score without it."""
        return self.with_image - self.without_image

    def __getitem__(self, chosen: Any) -> TokenScores:
        """Return the scores of some tokens: a slice, or a bool or int64 tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        selected: dict[str, Any] = {name: None if value is None else value[chosen] for name, value in values.items()}
        return TokenScores(**selected)


class WeightRule:
    """A rule: `weights = rule(scores)`, float32 [tokens]. It knows nothing of models and batches.

    Attributes:
        score: what it reads, `logit` or `logprob`.
        reads: the fields of `TokenScores` that it needs, all but `sample_index`, which is always there. A rule that
            reads `without_image` or `divergence` is given only the tokens of samples with an image, and the others
            have weight 1.
        contrast: what the image is compared with unless the loss says otherwise, see `contrasts.py`.
        mixes_samples: whether a token's weight depends on other samples of the batch.
        once: whether the weights are computed once, for all samples together, with the model before training.
    """

    score: ClassVar[Any] = "logprob"  # a rule may make it a field
    reads: ClassVar[tuple[str, ...]] = ("with_image", "without_image")
    contrast: ClassVar[str] = "no_image"
    mixes_samples: ClassVar[bool] = False
    once: ClassVar[bool] = False

    @property
    def contrasts(self) -> bool:
        """Whether it needs a second pass."""
        return not {"without_image", "divergence"}.isdisjoint(self.reads)

    @property
    def state(self) -> dict[str, Any]:
        """What the rule has learnt from the data while training, as JSON; empty for most rules."""
        return {}

    @property
    def estimates(self) -> dict[str, float]:
        """The numbers to log of what it has learnt."""
        return self.state

    def measure(self, scores: TokenScores) -> Tensor | None:
        """Return what `learn` needs of a batch, float32 [any], summable over batches; None if nothing is learnt."""
        return None

    def learn(self, measured: Tensor) -> WeightRule:
        """Return the rule after an optimizer step, in whose batches the sum was `measured`."""
        return self

    def restore(self, state: dict[str, Any]) -> WeightRule:
        """Return the rule with what it had learnt, see `state`."""
        return replace(self, **state) if state else self  # type: ignore[type-var]

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        """Return shares of tokens to log: from names to bool [tokens]."""
        return {}

    def __call__(self, scores: TokenScores) -> Tensor:
        """Compute the weights, float32 [tokens]."""
        raise NotImplementedError


SCORES = ("logit", "logprob")


@dataclass(frozen=True)
class ClampedDifference(WeightRule):
    """w = clamp(delta, alpha, beta): CAL, where delta is the logit with the image minus the logit without it.

    Args:
        score: `logit` (the paper) or `logprob`.
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.

    Raises ValueError for an unknown score, or bounds outside their range.

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
class NegativeDifference(ClampedDifference):
    """w = clamp(-delta, alpha, beta): tokens that the image makes less probable count more, the contrary of CAL.

    Source: the claim of Shen, Wu and Rajan, "Reducing Object Hallucination in LVLMs via Emphasizing Image-negative
    Tokens", arXiv 2605.21300, as its abstract states it; the weight itself, CAL's with the opposite sign, is ours.

    Example:
        >>> NegativeDifference()(TokenScores(torch.tensor([2.0, 0.0, -1.0]), torch.tensor([0.0, 9.0, 2.0])))
        tensor([1., 5., 3.])
    """

    score: str = "logprob"  # type: ignore[misc]

    def __call__(self, scores: TokenScores) -> Tensor:
        return clamp_delta(-scores.delta, self.alpha, self.beta)

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        return super().describe(-delta)


@dataclass(frozen=True)
class ProbabilityRatio(WeightRule):
    """w = min(p(t | image) / p(t), upper): 1 for a token that the image does not change, 0 for one it rules out.

    Args:
        upper: the largest weight, above 0.

    Raises ValueError for an upper bound that is not above 0.

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
    """w = 1 for the fraction of the batch's tokens with the largest loss minus reference loss, else 0.

    This is selective language modelling (Rho-1), here with a reference that reads the text alone. The number of tokens
    is rounded up.

    Args:
        share: share of the tokens that count, above 0 and at most 1; 0.6 is that of Rho-1's smaller model.

    Raises ValueError for a share outside its range.

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
    keeps the given fraction of samples; the tokens of the others, and tokens below the same threshold, have weight 0.

    Args:
        share: share of the samples with an image that are kept, above 0 and at most 1.

    Raises ValueError for a share outside its range.

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


@dataclass(frozen=True)
class VisualDependence(WeightRule):
    """w = 1 for the fraction of each text's tokens whose prediction depends most on the image, else 0.

    The dependence is the Kullback-Leibler divergence of the prediction with the image from that with a masked image. It
    does not depend on the label: wrong words count as much as right ones. The number of tokens is rounded up.

    Args:
        share: share of the tokens of a text that count, above 0 and at most 1; 0.4 is the published one.

    Raises ValueError for a share outside its range.

    Source: Huang et al., "Spotlight on Token Perception for Multimodal Reinforcement Learning" (VPPO), arXiv
    2510.09285: its filter of tokens. Its other part, the weight of a trajectory's advantage, has no counterpart here.

    Example:
        >>> scores = TokenScores(divergence=torch.tensor([0.1, 2.0, 3.0, 0.0]), sample_index=torch.tensor([0, 0, 1, 1]))
        >>> VisualDependence(share=0.5)(scores)
        tensor([0., 1., 1., 0.])
    """

    reads: ClassVar[tuple[str, ...]] = ("divergence",)
    contrast: ClassVar[str] = "masked_patches"
    share: float = 0.4

    def __post_init__(self) -> None:
        check_share(self.share)

    def __call__(self, scores: TokenScores) -> Tensor:
        _, member, counts = scores.sample_index.unique(return_inverse=True, return_counts=True)
        order = scores.divergence.argsort(descending=True, stable=True)
        order = order[member[order].argsort(stable=True)]  # text by text
        rank = torch.arange(len(order), device=order.device) - (counts.cumsum(dim=0) - counts)[member[order]]
        kept = rank < (self.share * counts).ceil()[member[order]]
        return torch.zeros_like(scores.divergence).index_copy(0, order, kept.float())


def average_by(values: Tensor, member: Tensor, groups: int) -> Tensor:
    """Return the mean of the values of each group, float32 [groups]; `member` is int64 [values]."""
    sums = values.new_zeros(groups).index_add(0, member, values)
    return sums / values.new_zeros(groups).index_add(0, member, torch.ones_like(values))


def check_share(share: float) -> None:
    """Raise ValueError unless the share is above 0 and at most 1."""
    if not 0 < share <= 1:
        raise ValueError(f"share={share}: must be above 0 and at most 1")


@dataclass(frozen=True)
class EqualWeights(WeightRule):
    """w = 1: plain cross-entropy."""

    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, scores: TokenScores) -> Tensor:
        return torch.ones_like(scores.sample_index, dtype=torch.float32)


@dataclass(frozen=True)
class ProbabilityPower(WeightRule):
    """w = p(t)^q: a token that the model finds improbable counts little, whether it is noise or merely hard.

    With q = 1 this is dynamic fine-tuning (DFT, Wu et al. 2025, arXiv 2508.05629); with q = 0.7 the gradient is that of
    generalised cross-entropy, (1 - p^q) / q (GCE, Zhang and Sabuncu 2018, arXiv 1805.07836). Both divide the loss by
    the number of tokens (`normalization="tokens"`).

    Args:
        q: the power, at least 0; 0 is plain cross-entropy.

    Raises ValueError for a negative power.

    Example:
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
        >>> GivenWeights()(TokenScores(given=torch.tensor([0.5, 2.0])))
        tensor([0.5000, 2.0000])
    """

    reads: ClassVar[tuple[str, ...]] = ("given",)

    def __call__(self, scores: TokenScores) -> Tensor:
        return scores.given
