"""The loss: cross-entropy of the supervised tokens, each weighted (Algorithm 1, step 5).

One loss composes a weight rule, what the image is compared with, pooling and normalisation. CAL, plain cross-entropy
and PRIOR are presets of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from cal_cli.objective.contrasts import (
    CONTRASTS,
    Cached,
    Contrast,
    OwnContrast,
    Reference,
    contrast_tokens,
    make_contrast,
)
from cal_cli.objective.passes import GIVEN_WEIGHTS, ForwardPass, Positions, run_with_image, score_labels
from cal_cli.objective.rules import ClampedDifference, EqualWeights, TextImprobability, TokenScores, WeightRule
from cal_cli.objective.weights import (
    NORMALIZATIONS,
    check_window,
    compute_divisor,
    normalize_within_samples,
    pool_answers,
    pool_flat,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from cal_cli.objective.contrasts import ImageContrast

POOLINGS = ("answer", "flat")


class NonFiniteLoss(FloatingPointError):
    """A loss was nan or infinite.

    Attributes:
        loss: its value.
        rows: rows of the batch in which a token's cross-entropy or weight is not finite.
        step: in a trainer, the optimizer steps completed before it.
        samples: in a trainer, the ids of the samples in these rows; empty if the collator returns none.
    """

    step: int | None = None
    samples: Sequence[str] = ()

    def __init__(self, loss: float, rows: list[int]) -> None:
        super().__init__(
            f"the loss is {loss}, from row {', '.join(map(str, rows))} of the batch: look at these samples' pixel "
            "values, at the learning rate and at the model's weights"
        )
        self.loss, self.rows = loss, rows


@dataclass
class LossOutput(ModelOutput):
    """The result of one call of a loss; the vectors are float32 [supervised tokens], in reading order.

    It extends an output of `transformers`, so that wrappers of a model (DDP, FSDP) find the tensors in it.
    """

    loss: Tensor = None  # type: ignore[assignment]  # scalar, differentiable
    cross_entropy: Tensor = None  # type: ignore[assignment]  # without gradient
    weights: Tensor = None  # type: ignore[assignment]
    delta: Tensor | None = None  # None if the weights do not depend on it
    denominator: Tensor = None  # type: ignore[assignment]  # scalar: what the loss is divided by, see `RuleLoss`
    measured: Tensor | None = None  # float32 [any], see `RuleLoss.learn`


class RuleLoss:
    """Cross-entropy of the supervised tokens, weighted by a rule: `loss = RuleLoss(ProbabilityRatio(), window=3)`.

    `out = loss(model, batch)`. A second pass runs only if the rule contrasts. Tokens of samples without an image then
    have weight 1. The normalizations are

    - `batch`: divide by the sum of the weights of the whole batch;
    - `tokens`: divide by the number of supervised tokens of the whole batch, so that small weights make a small loss;
    - `sample`: divide each sample by the sum of its own weights and average over samples, as the paper's equation does;
    - `length`: divide each sample by the sum of its own weights and average over tokens, as PRIOR does;
    - `device_batch`: as `batch`, but a batch that is divided among devices or accumulated is the mean of its parts'
      losses, as in the paper's released code.

    The loss of a batch that is computed in parts is sum(loss * denominator) / sum(denominator) over the parts'
    outputs: their `denominator` is the sum of the weights, the number of tokens, of samples, of tokens, and 1, in this
    order.

    Some rules learn something from the data, as `MismatchPosterior` does: `loss.learn(out.measured)` after each
    optimizer step replaces the rule by one that has learnt from it. `CALTrainer` does so, with the sum over all
    micro-batches and processes.

    Args:
        rule: computes the weights from the scores, see `rules`.
        contrast: name of what the image is compared with, see `contrasts.py`; None means the rule's own.
        window: width in tokens of the average over neighbouring weights, odd; 1 pools nothing.
        pooling: `answer` averages over the supervised tokens of one sample; `flat` along the flattened
            (batch x sequence) axis, supervised or not, as CAL's released code does.
        shuffled: permute the pooled weights among the supervised tokens of the batch: a control with the same histogram
            and no information.
        normalization: see above.
        ratio: fraction of the patches that `contrast="masked_patches"` covers; None means 0.5.
        sigma: standard deviation of `contrast="blur"` in pixels; None means 1. With `contrast="cached"`, the cached
            scores are those of the blurred image.
        reference: the frozen model of `contrast="reference"`, and of `contrast="cached"` if it is not None.

    Raises ValueError for an option outside its range, or one that has no effect.
    """

    def __init__(
        self,
        rule: WeightRule,
        contrast: str | None = None,
        window: int = 1,
        pooling: str = "answer",
        shuffled: bool = False,
        normalization: str = "batch",
        ratio: float | None = None,
        sigma: float | None = None,
        reference: Any = None,
    ) -> None:
        check_window(window)
        for option, value, allowed in (
            ("pooling", pooling, POOLINGS),
            ("normalization", normalization, NORMALIZATIONS),
            ("contrast", contrast, (*CONTRASTS, None) if contrast is None else CONTRASTS),
        ):
            if value not in allowed:
                raise ValueError(f"{option}={value}: allowed are {', '.join(allowed[:-1])} and {allowed[-1]}")
        kind = type(rule).__name__
        if not rule.contrasts and contrast is not None:
            raise ValueError(f"contrast={contrast} has no effect: {kind} reads no score without the image")
        if rule.contrasts and contrast is None:
            contrast = rule.contrast
        if contrast in ("cached", "reference") and pooling == "flat":
            raise ValueError(f"contrast={contrast} only knows supervised tokens: use pooling=answer")
        if "divergence" in rule.reads and contrast in ("cached", "reference"):
            raise ValueError(f"contrast={contrast} only has the labels' scores: {kind} needs whole predictions")
        if rule.once and contrast not in ("no_image", "blur", "reference"):
            raise ValueError(
                f"contrast={contrast}: {kind} is computed once before training; allowed are no_image, blur, reference"
            )
        self.rule, self.window, self.pooling = rule, window, pooling
        self.shuffled, self.normalization = shuffled, normalization
        self.contrast = make_contrast(contrast, rule.contrast, ratio, sigma, reference)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]

    @property
    def score(self) -> str:
        """What the rule reads, `logit` or `logprob`."""
        return self.rule.score

    @property
    def reach(self) -> int:
        """Number of neighbours, on each side of a supervised token, whose weights flat pooling reads."""
        return self.window // 2 if self.pooling == "flat" else 0

    @property
    def before_training(self) -> ImageContrast | None:
        """The contrast whose scores are computed once before training; None if they are computed in each step."""
        if self.rule.once:
            return self.contrast
        return self.contrast.computed if isinstance(self.contrast, Cached) else None

    @property
    def reference_contrast(self) -> Reference | None:
        """The contrast with a frozen model, of each step or computed before; None if there is none."""
        contrast = self.before_training or self.contrast
        return contrast if isinstance(contrast, Reference) else None

    @property
    def reference(self) -> Any:
        """The frozen model that reads the text alone; None if there is none."""
        return None if self.reference_contrast is None else self.reference_contrast.model

    @property
    def weighs_in_chunks(self) -> bool:
        """Whether the weights need only a sample's own log-probabilities, which the cross-entropy computes anyway."""
        reads = self.rule.reads
        alone = not (self.rule.mixes_samples or self.shuffled or self.rule.once or self.pooling == "flat")
        return alone and self.score == "logprob" and "with_image" in reads and "entropy" not in reads

    @property
    def state(self) -> dict[str, Any]:
        """What the rule has learnt from the data, as JSON; empty for most."""
        return self.rule.state

    @property
    def estimates(self) -> dict[str, float]:
        """The numbers to log of what it has learnt."""
        return self.rule.estimates

    def learn(self, measured: Tensor) -> None:
        """Learn from an optimizer step; `measured` is the sum over the outputs of its micro-batches."""
        self.rule = self.rule.learn(measured)

    def restore(self, state: dict[str, Any]) -> None:
        """Set what has been learnt, such as that of a checkpoint."""
        self.rule = self.rule.restore(state)

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        """Return fractions of tokens to log: from names to bool [tokens]; `delta` is float32 [tokens]."""
        return self.rule.describe(delta)

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> LossOutput:
        """Compute the loss of a batch.

        Args:
            model: an image-text-to-text model of `transformers`, unwrapped, or one with PEFT's adapters.
            batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and whatever
                else the model takes: `attention_mask`, `pixel_values`, ...; for `contrast="cached"` also
                `scores_without_image` (float32 [batch, length], at the labels' positions).

        Raises:
            ValueError: no supervised token, pixel values without an image token, or a model that is not supported
                (the message says why).
            NonFiniteLoss: before any gradient is computed.
        """
        forward = run_with_image(model, batch, self.reach)
        output = self._compute_in_chunks(forward) if self.weighs_in_chunks else self._compute(forward)
        if not torch.isfinite(output.loss):
            wrong = ~torch.isfinite(output.cross_entropy) | ~torch.isfinite(output.weights)
            rows = forward.positions.rows[forward.positions.supervised]
            raise NonFiniteLoss(output.loss.item(), rows[wrong].unique().tolist())
        return output

    def _compute(self, forward: ForwardPass) -> LossOutput:
        """Compute the loss from the pass with the image: all weights first, then the cross-entropy."""
        positions = forward.positions
        supervised = positions.supervised
        with torch.no_grad():
            scores = self.score_tokens(forward)
            delta, measured = self._observe(scores, positions)
            weights, rows = self.weigh_positions(scores, forward)[supervised], positions.rows[supervised]
            divisor = compute_divisor(weights, rows, self.normalization)
            coefficients = normalize_within_samples(weights, rows, self.normalization) / divisor
        loss, cross_entropy = forward.head.weighted_cross_entropy(
            forward.hidden[supervised], positions.labels[supervised], coefficients
        )
        delta = None if delta is None else delta[supervised]
        return LossOutput(loss, cross_entropy, weights, delta, self._get_denominator(divisor), measured)

    def _compute_in_chunks(self, forward: ForwardPass) -> LossOutput:
        """Compute the loss with the weights of a chunk of samples while their logits exist."""
        positions = forward.positions
        with torch.no_grad():
            scores = self.score_tokens(forward, in_chunks=True)
        weights = torch.empty_like(scores.with_image)

        def weigh(part: slice, logprobs: Tensor) -> Tensor:
            scores.with_image[part] = logprobs
            own, rows = self.weigh_scores(scores[part], positions.has_image[part]), positions.rows[part]
            weights[part] = pool_answers(own, rows, self.window)
            return normalize_within_samples(weights[part], rows, self.normalization)

        samples = positions.rows.unique_consecutive(return_counts=True)[1].tolist()
        total, cross_entropy = forward.head.weighted_cross_entropy(forward.hidden, positions.labels, weigh, samples)
        divisor = compute_divisor(weights, positions.rows, self.normalization)
        delta, measured = self._observe(scores, positions)
        denominator = self._get_denominator(divisor)
        return LossOutput(total / divisor, cross_entropy, weights, delta, denominator, measured)

    def _get_denominator(self, divisor: Tensor) -> Tensor:
        return torch.ones_like(divisor) if self.normalization == "device_batch" else divisor

    def score_tokens(self, forward: ForwardPass, in_chunks: bool = False) -> TokenScores:
        """Compute the scores that the rule reads, of all positions; 0 for `with_image` if it is computed in chunks."""
        positions, reads = forward.positions, ("given",) if self.rule.once else self.rule.reads
        scores = TokenScores(sample_index=positions.rows)
        if in_chunks:
            scores.with_image = torch.zeros_like(positions.labels, dtype=torch.float32)
        elif "with_image" in reads:
            scores.with_image = score_labels(forward.head, forward.hidden, positions.labels, self.score)
        if "without_image" in reads:
            assert self.contrast is not None
            without_image = self.contrast.score(forward, self.score)
            scores.without_image = without_image.new_zeros(len(positions.labels))
            scores.without_image[positions.has_image] = without_image
        if "entropy" in reads:
            scores.entropy = forward.head.entropies(forward.hidden)
        if "divergence" in reads:
            assert isinstance(self.contrast, OwnContrast)
            shown, others = positions.has_image, self.contrast.compute_states(forward)
            scores.divergence = torch.zeros_like(positions.labels, dtype=torch.float32)
            scores.divergence[shown] = forward.head.divergences(forward.hidden[shown], others)
        if "given" in reads:
            given = forward.batch.get(GIVEN_WEIGHTS)
            if given is None:
                raise ValueError(
                    f"the rule reads {GIVEN_WEIGHTS} (float32 [batch, length], at the labels' positions): the batch "
                    "has none"
                )
            scores.given = given[positions.rows, positions.columns + 1].float()
        return scores

    def weigh_scores(self, scores: TokenScores, has_image: Tensor) -> Tensor:
        """Compute the weights before pooling, float32 [tokens]; `has_image` is bool [tokens]."""
        if self.rule.once:
            return scores.given
        if not self.rule.contrasts:
            return self.rule(scores)
        shown = has_image.nonzero()[:, 0]  # once: on a GPU each choice by a mask waits for the device
        return torch.ones_like(has_image, dtype=torch.float32).index_copy(0, shown, self.rule(scores[shown]).float())

    def weigh_positions(self, scores: TokenScores, forward: ForwardPass) -> Tensor:
        """Compute the pooled weights of all positions, float32 [positions]."""
        positions = forward.positions
        weights = self.weigh_scores(scores, positions.has_image)
        if self.pooling == "answer":
            weights = pool_answers(weights, positions.rows, self.window)
        else:
            rows, columns = forward.batch["input_ids"].shape
            columns -= 1  # nothing predicts the first token
            weights = pool_flat(weights, positions.rows * columns + positions.columns, rows * columns, self.window)
        if self.shuffled:
            among = weights[positions.supervised]
            weights[positions.supervised] = among[torch.randperm(len(among), device=among.device)]
        return weights

    def _observe(self, scores: TokenScores, positions: Positions) -> tuple[Tensor | None, Tensor | None]:
        """Return delta, float32 [positions] (0 without an image, None if it is unknown), and what the rule measures."""
        if self.rule.once:
            return None, None
        delta = None
        if {"with_image", "without_image"} <= set(self.rule.reads):
            delta = torch.where(positions.has_image, scores.delta, 0.0)
        shown = scores[positions.has_image.nonzero()[:, 0]] if self.rule.contrasts else scores
        return delta, self.rule.measure(shown)


WeightedLoss = RuleLoss  # its name in earlier versions


class CrossEntropyLoss(RuleLoss):
    """Plain cross-entropy (CE): every supervised token has weight 1, and nothing is contrasted; see `RuleLoss`."""

    def __init__(self, normalization: str = "batch") -> None:
        super().__init__(EqualWeights(), normalization=normalization)


class ContrastiveAlignmentLoss(RuleLoss):
    """Contrastive alignment (CAL) for any training loop: `out = loss(model, batch); out.loss.backward()`.

    Args:
        score: what is contrasted: `logit` (the paper) or `logprob` (pointwise mutual information).
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.
        window, normalization, pooling, contrast, ratio, sigma, reference, shuffled: see `RuleLoss`; the paper
            contrasts with `no_image`.

    Raises ValueError for an option outside its range, or one that the chosen contrast does not use.

    Source: arXiv 2405.17871, Algorithm 1; `flat` and `batch` from its released code; contrasts from its tables 8, 9.
    """

    def __init__(
        self,
        score: str = "logit",
        alpha: float = 1.0,
        beta: float = 5.0,
        window: int = 3,
        normalization: str = "batch",
        pooling: str = "answer",
        contrast: str = "no_image",
        ratio: float | None = None,
        sigma: float | None = None,
        reference: Any = None,
        shuffled: bool = False,
    ) -> None:
        rule = ClampedDifference(score, alpha, beta)
        super().__init__(rule, contrast, window, pooling, shuffled, normalization, ratio, sigma, reference)


class PriorLoss(RuleLoss):
    """PRIOR: tokens that the text alone predicts well count little; `w = 1 - P_reference(token | text before)`.

    Its authors train the reference model on the captions alone. The model's own frozen copy from before training,
    which reads the text alone, can replace it.

    Args:
        contrast: `reference`, or `cached`: the reference model's log-probabilities, computed once.
        reference: the frozen text-only model, with the tokenizer of the model in training.
        normalization: `length`, as published: each sample by its own weights, times its number of tokens.

    Raises ValueError for an option outside its range.

    Source: Chen et al., "Prioritizing Image-Related Tokens Enhances Vision-Language Pre-Training", arXiv 2505.08971.
    """

    def __init__(self, contrast: str = "reference", normalization: str = "length", reference: Any = None) -> None:
        if contrast not in ("reference", "cached"):
            raise ValueError(f"contrast={contrast}: allowed are reference and cached")
        super().__init__(TextImprobability(), contrast, normalization=normalization, reference=reference)


def score_before_training(objective: RuleLoss, model: PreTrainedModel, batch: Mapping[str, Any]) -> Contrast:
    """Compute once, with the model before training, the scores that an objective reads in every step.

    `objective` is one whose `contrast` is `cached`, or whose rule is computed once; `batch` is as it takes it.
    """
    with torch.no_grad():
        forward = run_with_image(model, batch)
        return contrast_tokens(forward, objective.before_training or objective.contrast, objective.score)


def scores_without_image(objective: RuleLoss, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """Compute once the scores that `contrast="cached"` later reads from its batches.

    Args:
        objective: its `score`, and what is cached: the scores of its `reference` if it has one, those of the blurred
            image if it has a `sigma`, else those of the rule's own contrast, which for CAL is the model itself without
            the image.
        model: the model before training.
        batch: as the objective takes it.

    Returns float32 [batch, length], at the labels' positions; nan where none is supervised.
    """
    contrast = score_before_training(objective, model, batch)
    scores = contrast.without_image.new_full(contrast.batch_shape, torch.nan)
    scores[contrast.sample_index, contrast.position] = contrast.without_image
    return scores
