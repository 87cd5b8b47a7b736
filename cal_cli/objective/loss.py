"""The loss: cross-entropy of the supervised tokens, each weighted (Algorithm 1, step 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from cal_cli.objective.conditions import CONTRASTS, check_contrast_options, score_without_image
from cal_cli.objective.contrast import Contrast, contrast
from cal_cli.objective.forward import SCORES, ForwardPass, run_with_image
from cal_cli.objective.normalization import NORMALIZATIONS, compute_shares
from cal_cli.objective.weights import check_bounds, check_window, clamp_delta, pool_flat, token_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

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
    denominator: Tensor = None  # type: ignore[assignment]  # scalar: what the loss is divided by, see `WeightedLoss`
    measured: Tensor | None = None  # float32 [any], see `WeightedLoss.learn`


class Weighing(NamedTuple):
    """What a loss finds out about the tokens of a batch."""

    weights: Tensor  # float32 [positions]
    delta: Tensor | None = None  # float32 [positions]; None if the weights do not depend on it
    measured: Tensor | None = None  # what an objective that estimates something learns from, see `WeightedLoss.learn`


class WeightedLoss:
    """Cross-entropy of the supervised tokens, each weighted by a rule: `out = loss(model, batch)`.

    A subclass defines `weigh`, and `normalization`: one of

    - `batch`: divide by the sum of the weights of the whole batch;
    - `tokens`: divide by the number of supervised tokens of the whole batch, so that small weights make a small loss;
    - `sample`: divide each sample by the sum of its own weights and average over samples, as the paper's equation does;
    - `length`: divide each sample by the sum of its own weights and average over tokens, as PRIOR does;
    - `device_batch`: as `batch`, but a batch that is divided among devices or accumulated is the mean of its parts'
      losses, as in the paper's released code.

    The loss of a batch that is computed in parts is sum(loss * denominator) / sum(denominator) over the parts'
    outputs: their `denominator` is the sum of the weights, the number of tokens, of samples, of tokens, and 1, in this
    order.
    """

    normalization: str
    reach = 0  # number of neighbours, on each side of a supervised token, whose weights are needed

    def weigh(self, forward: ForwardPass) -> Weighing:
        """Compute the weights, without gradient."""
        raise NotImplementedError

    @property
    def estimates(self) -> dict[str, float]:
        """What the objective has estimated from the data, by name; empty for most."""
        return {}

    def learn(self, measured: Tensor) -> None:
        """Update the estimates after an optimizer step; `measured` is the sum over the outputs of its micro-batches."""

    def restore(self, estimates: dict[str, float]) -> None:
        """Set the estimates, such as those of a checkpoint."""

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
        supervised = forward.positions.supervised
        with torch.no_grad():
            weights, delta, measured = self.weigh(forward)
            weights, rows = weights[supervised], forward.positions.rows[supervised]
            coefficients, denominator = compute_shares(weights, rows, self.normalization)
        loss, cross_entropy = forward.head.weighted_cross_entropy(
            forward.hidden[supervised], forward.positions.labels[supervised], coefficients
        )
        if not torch.isfinite(loss):
            wrong = ~torch.isfinite(cross_entropy) | ~torch.isfinite(weights)
            raise NonFiniteLoss(loss.item(), rows[wrong].unique().tolist())
        delta = None if delta is None else delta[supervised]
        return LossOutput(loss, cross_entropy, weights, delta, denominator, measured)


@dataclass(frozen=True)
class CrossEntropyLoss(WeightedLoss):
    """Plain cross-entropy (CE): every supervised token has weight 1, and nothing is contrasted.

    Args:
        normalization: see `WeightedLoss`.

    Raises:
        ValueError: an unknown normalization.
    """

    normalization: str = "batch"

    def __post_init__(self) -> None:
        check_choices(self, normalization=NORMALIZATIONS)

    def weigh(self, forward: ForwardPass) -> Weighing:
        return Weighing(torch.ones_like(forward.positions.labels, dtype=torch.float32))


@dataclass(frozen=True)
class ContrastiveAlignmentLoss(WeightedLoss):
    """Contrastive alignment (CAL) for any training loop: `out = loss(model, batch); out.loss.backward()`.

    Args:
        score: what is contrasted: `logit` (the paper) or `logprob` (pointwise mutual information).
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.
        window: width in tokens of the average over neighbouring weights, odd; 1 pools nothing.
        normalization: see `WeightedLoss`.
        pooling: `answer` averages over the supervised tokens of one sample; `flat` along the flattened
            (batch x sequence) axis, supervised or not, as the released code does.
        contrast: what the image is compared with, see `conditions.py`: `no_image` (the paper), `masked_patches`,
            `blur`, `cached` or `reference`.
        ratio: share of the patches that `masked_patches` covers; None means 0.5.
        sigma: standard deviation of `blur` in pixels; None means 1.
        reference: the frozen model of `contrast="reference"`.

    Raises:
        ValueError: an option outside its range, or one that the chosen contrast does not use.

    Source: arXiv 2405.17871, Algorithm 1; `flat` and `batch` from its released code; contrasts from its tables 8, 9.
    """

    score: str = "logit"
    alpha: float = 1.0
    beta: float = 5.0
    window: int = 3
    normalization: str = "batch"
    pooling: str = "answer"
    contrast: str = "no_image"
    ratio: float | None = None
    sigma: float | None = None
    reference: Any = None

    def __post_init__(self) -> None:
        check_bounds(self.alpha, self.beta)
        check_window(self.window)
        check_choices(self, score=SCORES, normalization=NORMALIZATIONS, pooling=POOLINGS, contrast=CONTRASTS)
        check_contrast_options(self.contrast, self.ratio, self.sigma, self.reference)
        if self.contrast in ("cached", "reference") and self.pooling == "flat":
            raise ValueError(f"contrast={self.contrast} only knows supervised tokens: use pooling=answer")

    @property
    def reach(self) -> int:  # type: ignore[override]
        """Flat pooling also reads the neighbours of supervised positions."""
        return self.window // 2 if self.pooling == "flat" else 0

    def contrast_tokens(self, forward: ForwardPass) -> Contrast:
        """Score the label tokens with the image and under this loss's condition."""
        options = {"ratio": self.ratio, "sigma": self.sigma, "reference": self.reference}
        return contrast(forward, self.contrast, self.score, **options)

    def weigh_contrast(self, contrast: Contrast) -> Tensor:
        """Compute the weights from the contrast: float32 [tokens]. A subclass with another rule overrides this."""
        if self.pooling == "answer":
            return token_weights(
                contrast.delta, contrast.sample_index, self.alpha, self.beta, self.window, contrast.has_image
            )
        clamped = clamp_delta(contrast.delta, self.alpha, self.beta, contrast.has_image)
        rows, columns = contrast.batch_shape[0], contrast.batch_shape[1] - 1  # nothing predicts the first token
        return pool_flat(clamped, contrast.sample_index * columns + contrast.position - 1, rows * columns, self.window)

    def weigh(self, forward: ForwardPass) -> Weighing:
        found = self.contrast_tokens(forward)
        return Weighing(self.weigh_contrast(found), found.delta)


@dataclass(frozen=True)
class PriorLoss(WeightedLoss):
    """PRIOR: tokens that the text alone predicts well count little; `w = 1 - P_reference(token | text before)`.

    Its authors train the reference model on the captions alone. The model's own frozen copy from before training,
    which reads the text alone, can replace it.

    Args:
        contrast: `reference`, or `cached`: the reference model's log-probabilities, computed once.
        reference: the frozen text-only model, with the tokenizer of the model in training.
        normalization: `length`, as published: each sample by its own weights, times its number of tokens.

    Raises:
        ValueError: an option outside its range.

    Source: Chen et al., "Prioritizing Image-Related Tokens Enhances Vision-Language Pre-Training", arXiv 2505.08971.
    """

    contrast: str = "reference"
    normalization: str = "length"
    reference: Any = None
    score: ClassVar[str] = "logprob"

    def __post_init__(self) -> None:
        check_choices(self, contrast=("reference", "cached"), normalization=NORMALIZATIONS)

    def weigh(self, forward: ForwardPass) -> Weighing:
        shown = forward.positions.has_image
        weights = torch.ones_like(shown, dtype=torch.float32)
        weights[shown] -= score_without_image(forward, self.contrast, self.score, reference=self.reference).exp()
        return Weighing(weights)


def scores_without_image(objective: WeightedLoss, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """Compute once the scores that `contrast="cached"` later reads from its batches.

    Args:
        objective: CAL or PRIOR; its `score`, and its `reference` if it has one. Without a reference, CAL's scores are
            those of the model itself without the image.
        model: the model before training.
        batch: as the objective takes it.

    Returns:
        float32 [batch, length], at the labels' positions; nan where none is supervised.
    """
    options: Any = objective
    uses_reference = isinstance(objective, PriorLoss) or options.reference is not None
    with torch.no_grad():
        forward = run_with_image(model, batch)
        found = contrast(
            forward, "reference" if uses_reference else "no_image", options.score, reference=options.reference
        )
        scores = found.without_image.new_full(found.batch_shape, torch.nan)
        scores[found.sample_index, found.position] = found.without_image
    return scores


def check_choices(options: Any, **allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless each named option is one of the allowed values."""
    for name, choices in allowed.items():
        if getattr(options, name) not in choices:
            raise ValueError(
                f"{name}={getattr(options, name)}: allowed are {', '.join(choices[:-1])} and {choices[-1]}"
            )
