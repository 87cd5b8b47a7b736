"""The loss: cross-entropy of the supervised tokens, each weighted (Algorithm 1, step 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from cal_cli.objective.conditions import CONTRASTS, scores_to_contrast
from cal_cli.objective.contrast import (
    SCORES,
    FirstPass,
    Positions,
    forward_with_image,
    label_scores,
    scored_positions,
)
from cal_cli.objective.weights import check_bounds, clamp_delta, pool_flat, token_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NORMALIZATIONS = ("batch", "sample", "length")
POOLINGS = ("answer", "flat")
EPSILON = 1e-6  # as in the released code; keeps a batch whose weights are all 0 finite


class NonFiniteLoss(FloatingPointError):
    """A loss was nan or infinite.

    Attributes:
        loss: its value.
        rows: rows of the batch in which a token's cross-entropy or weight is not finite.
        step: in a trainer, the optimizer steps completed before it.
        samples: in a trainer, the ids of the samples in these rows; empty if the collator names none.
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
    """What one call of the loss computed; the vectors are float32 [supervised tokens], in reading order.

    One of the library's outputs, so that what wraps a model (DDP, FSDP) finds the tensors in it.
    """

    loss: Tensor = None  # type: ignore[assignment]  # scalar, differentiable
    cross_entropy: Tensor = None  # type: ignore[assignment]  # without gradient
    weights: Tensor = None  # type: ignore[assignment]
    delta: Tensor | None = None  # None where the weights do not depend on it (alpha equal to beta)


class WeightedLoss:
    """Cross-entropy of the supervised tokens, each weighted as a subclass says: `out = loss(model, batch)`."""

    normalization: str
    reach = 0  # how far beside the supervised tokens the weights look

    def weigh(
        self, first: FirstPass, batch: Mapping[str, Any], positions: Positions, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """Weights, and deltas where they are known, float32 [positions]; called without gradient."""
        raise NotImplementedError

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> LossOutput:
        """Compute the loss of a batch.

        Args:
            model: an image-text-to-text model of `transformers`, unwrapped, or one with PEFT's adapters.
            batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and what
                else the model takes: `attention_mask`, `pixel_values`, ...; for `contrast="cached"` also
                `scores_without_image` (float32 [batch, length], at the labels' places).

        Raises:
            ValueError: no supervised token, pixel values without an image token, or a model that cannot be treated
                right (the message says why).
            NonFiniteLoss: before any gradient is taken.
        """
        positions = scored_positions(model, batch, self.reach)
        supervised = positions.supervised
        first = forward_with_image(model, batch)
        hidden = first.hidden[positions.rows, positions.columns]
        with torch.no_grad():
            weights, delta = self.weigh(first, batch, positions, hidden)
            weights, rows = weights[supervised], positions.rows[supervised]
            coefficients = shares(weights, rows, self.normalization)
        loss, cross_entropy = first.head.weighted_cross_entropy(
            hidden[supervised], positions.labels[supervised], coefficients
        )
        if not torch.isfinite(loss):
            wrong = ~torch.isfinite(cross_entropy) | ~torch.isfinite(weights)
            raise NonFiniteLoss(loss.item(), rows[wrong].unique().tolist())
        return LossOutput(loss, cross_entropy, weights, None if delta is None else delta[supervised])


@dataclass(frozen=True)
class ContrastiveAlignmentLoss(WeightedLoss):
    """Contrastive alignment (CAL) for any training loop: `out = loss(model, batch); out.loss.backward()`.

    With `alpha` equal to `beta` every token weighs the same: that is plain cross-entropy, and the contrast pass
    is left out.

    Args:
        score: what is contrasted: `logit` (the paper) or `logprob` (pointwise mutual information).
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.
        window: width in tokens of the average over neighbouring weights, odd; 1 pools nothing.
        normalization: `batch` divides by the weights of the whole batch, as the released code does; `sample`
            divides each sample by its own and averages over samples, as the paper's equation says; `length` divides
            each sample by its own and averages over tokens, as PRIOR does.
        pooling: `answer` averages among the supervised tokens of one sample; `flat` along the flattened
            (batch x sequence) axis, supervised or not, as the released code does.
        contrast: what the image is held against, see `conditions.py`: `no_image` (the paper), `masked_patches`,
            `blur`, `cached` or `reference`.
        ratio: share of the patches that `masked_patches` covers.
        sigma: width of the blur in pixels.
        reference: the frozen model of `contrast="reference"`.

    Raises:
        ValueError: an option outside its range.

    Source: arXiv 2405.17871, Algorithm 1; `flat` and `batch` from its released code; contrasts from its tables 8, 9.
    """

    score: str = "logit"
    alpha: float = 1.0
    beta: float = 5.0
    window: int = 3
    normalization: str = "batch"
    pooling: str = "answer"
    contrast: str = "no_image"
    ratio: float = 0.5
    sigma: float = 1.0
    reference: Any = None

    def __post_init__(self) -> None:
        check_bounds(self.alpha, self.beta, self.window)
        check_choices(self, score=SCORES, normalization=NORMALIZATIONS, pooling=POOLINGS, contrast=CONTRASTS)
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio}: the share of covered patches must be above 0 and at most 1")
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma}: the blur's width in pixels must be above 0")
        if self.contrast in ("cached", "reference") and self.pooling == "flat":
            raise ValueError(f"contrast={self.contrast} knows supervised tokens alone: use pooling=answer")

    @property
    def contrasts(self) -> bool:
        """Whether the weights depend on the image at all."""
        return self.alpha < self.beta

    @property
    def reach(self) -> int:  # type: ignore[override]
        """Flat pooling also reads the neighbours of supervised positions."""
        return self.window // 2 if self.contrasts and self.pooling == "flat" else 0

    def weigh(
        self, first: FirstPass, batch: Mapping[str, Any], positions: Positions, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        if not self.contrasts:
            return torch.where(positions.has_image, self.alpha, 1.0), None
        with_image = label_scores(first.head, hidden, positions.labels, self.score)
        delta = with_image - scores_to_contrast(self, first, batch, positions, with_image)
        if self.pooling == "answer":
            return token_weights(delta, positions.rows, self.alpha, self.beta, self.window, positions.has_image), delta
        rows, columns = batch["labels"].shape[0], batch["labels"].shape[1] - 1  # the first label has nothing before
        clamped = clamp_delta(delta, self.alpha, self.beta, positions.has_image)
        return pool_flat(clamped, positions.rows * columns + positions.columns, rows * columns, self.window), delta


@dataclass(frozen=True)
class PriorLoss(WeightedLoss):
    """PRIOR: tokens that text alone predicts well count little; `w = 1 - P_reference(token | text before)`.

    Where its authors train the reference model on the captions alone, give that one; a model's own frozen copy from
    before training, which reads the text alone, is a stand-in.

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

    def weigh(
        self, first: FirstPass, batch: Mapping[str, Any], positions: Positions, hidden: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        never_predicted = hidden.new_full(hidden.shape[:1], -torch.inf, dtype=torch.float32)  # without image: weight 1
        return 1 - scores_to_contrast(self, first, batch, positions, never_predicted).exp(), None


def scores_without_image(objective: WeightedLoss, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """Compute once what `contrast="cached"` reads from its batches afterwards.

    Args:
        objective: CAL or PRIOR; its `score`, and its `reference` where it has one. Without a reference, CAL's scores
            are those of the model itself, without the image.
        model: the model before training.
        batch: as the objective takes it.

    Returns:
        float32 [batch, length], at the places of the labels; nan where none is supervised.
    """
    options: Any = objective
    if isinstance(objective, PriorLoss) or options.reference is not None:
        source = replace(options, contrast="reference")
    else:
        source = replace(options, contrast="no_image")
    with torch.no_grad():
        positions = scored_positions(model, batch)
        first = forward_with_image(model, batch)
        hidden = first.hidden[positions.rows, positions.columns]
        with_image = label_scores(first.head, hidden, positions.labels, source.score)
        scores = with_image.new_full(batch["labels"].shape, torch.nan)
        found = scores_to_contrast(source, first, batch, positions, with_image)
        scores[positions.rows, positions.columns + 1] = found
    return scores


def shares(weights: Tensor, sample_index: Tensor, normalization: str) -> Tensor:
    """Each token's share of the loss: float32 [tokens], so that loss = sum(share * cross-entropy).

    Args:
        weights: float32 [tokens].
        sample_index: int64 [tokens], the sample that each token belongs to.
        normalization: `batch`, w / sum(w); `sample`, w / sum of the sample's w / samples; `length`, w / sum of the
            sample's w * its tokens / all tokens.
    """
    if normalization == "batch":
        return weights / (weights.sum() + EPSILON)
    samples, member = sample_index.unique(return_inverse=True)
    zeros = weights.new_zeros(len(samples))
    share = weights / (zeros.index_add(0, member, weights) + EPSILON)[member]
    if normalization == "sample":
        return share / len(samples)
    return share * zeros.index_add(0, member, torch.ones_like(weights))[member] / len(weights)


def check_choices(options: Any, **allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless each named option is one of the allowed."""
    for name, choices in allowed.items():
        if getattr(options, name) not in choices:
            raise ValueError(
                f"{name}={getattr(options, name)}: allowed are {', '.join(choices[:-1])} and {choices[-1]}"
            )
