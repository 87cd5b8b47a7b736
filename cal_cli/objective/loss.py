"""The loss: cross-entropy of the supervised tokens, each weighted (Algorithm 1, step 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.contrast import (
    SCORES,
    Positions,
    forward_with_image,
    label_scores,
    language_head,
    scored_positions,
    scores_without_image,
)
from cal_cli.objective.weights import check_bounds, clamp_delta, pool_flat, token_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NORMALIZATIONS = ("batch", "sample")
POOLINGS = ("answer", "flat")
EPSILON = 1e-6  # as in the released code; keeps a batch whose weights are all 0 finite


@dataclass
class LossOutput:
    """What one call of the loss computed; the vectors are float32 [supervised tokens], in reading order."""

    loss: Tensor  # scalar, differentiable
    cross_entropy: Tensor
    weights: Tensor
    delta: Tensor | None  # None where the weights do not depend on it (alpha equal to beta)


@dataclass(frozen=True)
class ContrastiveAlignmentLoss:
    """Contrastive alignment (CAL) for any training loop: `out = loss(model, batch); out.loss.backward()`.

    With `alpha` equal to `beta` every token weighs the same: that is plain cross-entropy, and the contrast pass
    is left out.

    Args:
        score: what is contrasted: `logit` (the paper) or `logprob` (pointwise mutual information).
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.
        window: width in tokens of the average over neighbouring weights, odd; 1 pools nothing.
        normalization: `batch` divides by the weights of the whole batch, as the released code does; `sample`
            divides each sample by its own and averages over samples, as the paper's equation says.
        pooling: `answer` averages among the supervised tokens of one sample; `flat` along the flattened
            (batch x sequence) axis, supervised or not, as the released code does.

    Raises:
        ValueError: an option outside its range.

    Source: arXiv 2405.17871, Algorithm 1; `flat` and `batch` from its released code.
    """

    score: str = "logit"
    alpha: float = 1.0
    beta: float = 5.0
    window: int = 3
    normalization: str = "batch"
    pooling: str = "answer"

    def __post_init__(self) -> None:
        check_bounds(self.alpha, self.beta, self.window)
        for name, allowed in (("score", SCORES), ("normalization", NORMALIZATIONS), ("pooling", POOLINGS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)}: allowed are {' and '.join(allowed)}")

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> LossOutput:
        """Compute the loss of a batch.

        Args:
            model: an image-text-to-text model of `transformers`, unwrapped.
            batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and what
                else the model takes: `attention_mask`, `pixel_values`, ...

        Raises:
            ValueError: no supervised token, or a model without image token or language head.
        """
        # flat pooling also reads the neighbours of supervised positions
        reach = self.window // 2 if self.contrasts and self.pooling == "flat" else 0
        positions = scored_positions(model, batch, reach)
        supervised = positions.supervised
        hidden, decoder_inputs = forward_with_image(model, batch)
        hidden = hidden[positions.rows, positions.columns]
        logits = language_head(model)(hidden[supervised]).float()
        cross_entropy = F.cross_entropy(logits, positions.labels[supervised], reduction="none")

        delta = None
        weights = torch.where(positions.has_image[supervised], self.alpha, 1.0)
        if self.contrasts:
            with torch.no_grad():
                if self.score == "logprob" and not reach:
                    with_image = -cross_entropy  # known already
                else:
                    with_image = label_scores(model, hidden, positions.labels, self.score)
                without_image = scores_without_image(model, batch, decoder_inputs, positions, with_image, self.score)
                delta = with_image - without_image
                weights = self._weigh(delta, positions, batch["labels"].shape)[supervised]
                delta = delta[supervised]
        loss = self._normalize(cross_entropy, weights, positions.rows[supervised])
        return LossOutput(loss, cross_entropy, weights, delta)

    @property
    def contrasts(self) -> bool:
        """Whether the weights depend on the image at all."""
        return self.alpha < self.beta

    def _weigh(self, delta: Tensor, positions: Positions, shape: torch.Size) -> Tensor:
        """Clamp and pool: float32 [positions]; `shape` is that of the labels, (batch, length)."""
        if self.pooling == "answer":
            return token_weights(delta, positions.rows, self.alpha, self.beta, self.window, positions.has_image)
        rows, columns = shape[0], shape[1] - 1  # the first label has nothing before it
        clamped = clamp_delta(delta, self.alpha, self.beta, positions.has_image)
        return pool_flat(clamped, positions.rows * columns + positions.columns, rows * columns, self.window)

    def _normalize(self, cross_entropy: Tensor, weights: Tensor, sample_index: Tensor) -> Tensor:
        """The weighted mean over the batch, or the mean over samples of each sample's weighted mean."""
        if self.normalization == "batch":
            return (weights * cross_entropy).sum() / (weights.sum() + EPSILON)
        samples, member = sample_index.unique(return_inverse=True)
        zeros = cross_entropy.new_zeros(len(samples))
        weighted = zeros.index_add(0, member, weights * cross_entropy)
        return (weighted / (zeros.index_add(0, member, weights) + EPSILON)).mean()
