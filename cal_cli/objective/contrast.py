"""The contrast: each label token's score with the image and without it (Algorithm 1, steps 1 and 2)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cal_cli.objective.conditions import score_without_image
from cal_cli.objective.forward import ForwardPass, run_with_image, score_labels
from cal_cli.objective.rules.contrastive import SCORES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Contrast:
    """Scores of label tokens with and without the image; all fields are [tokens], in reading order.

    The tokens are the supervised ones, and with flat pooling also their neighbours.
    """

    with_image: Tensor  # float32
    without_image: Tensor  # float32
    labels: Tensor  # int64
    sample_index: Tensor  # int64, row of the batch
    position: Tensor  # int64, column of the label token in `input_ids`
    has_image: Tensor  # bool
    batch_shape: tuple[int, int]  # of `input_ids`

    @property
    def delta(self) -> Tensor:
        """float32 [tokens]: with the image minus without; 0 for samples without an image."""
        return self.with_image - self.without_image


def contrast(
    forward: ForwardPass,
    condition: str = "no_image",
    score: str = "logit",
    ratio: float | None = None,
    sigma: float | None = None,
    reference: Any = None,
) -> Contrast:
    """Score the label tokens of a forward pass with the image and under a condition without it, without gradient.

    Args:
        forward: the pass with the image.
        condition: what the image is compared with, see `conditions.py`.
        score: `logit` or `logprob`.
        ratio, sigma, reference: options of the condition, see `score_without_image`.

    Raises:
        ValueError: the condition is not possible for this model or batch.
    """
    positions = forward.positions
    with torch.no_grad():
        with_image = score_labels(forward.head, forward.hidden, positions.labels, score)
        without_image = with_image.clone()
        without_image[positions.has_image] = score_without_image(forward, condition, score, ratio, sigma, reference)
    return Contrast(
        with_image=with_image,
        without_image=without_image,
        labels=positions.labels,
        sample_index=positions.rows,
        position=positions.columns + 1,
        has_image=positions.has_image,
        batch_shape=tuple(forward.batch["input_ids"].shape),
    )


def contrast_logits(model: PreTrainedModel, batch: Mapping[str, Any], score: str = "logit") -> Contrast:
    """Score every supervised token of a batch with and without its image, without gradient.

    Args:
        model: an image-text-to-text model of `transformers`.
        batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and whatever else
            the model takes: `attention_mask`, `pixel_values`, ...
        score: `logit`, the raw logit as in the paper, or `logprob`, the log-probability; the difference of two
            log-probabilities is the pointwise mutual information of token and image, given the text before.

    Raises:
        ValueError: an unknown score, no supervised token, pixel values without an image token, or a model that the
            pass without the image does not support (the message says why).
        FloatingPointError: a score is nan or infinite.
    """
    if score not in SCORES:
        raise ValueError(f"score={score}: allowed are {' and '.join(SCORES)}")
    with torch.no_grad():
        found = contrast(run_with_image(model, batch), score=score)
    if not torch.isfinite(found.delta).all():
        rows = found.sample_index[~torch.isfinite(found.delta)].unique().tolist()
        raise FloatingPointError(
            f"a {score} of the labels is nan or infinite in row {', '.join(map(str, rows))} of the batch: look at "
            "these samples' pixel values and at the model's weights"
        )
    return found
