"""The contrast: each label token's score with the image and without it (Algorithm 1, steps 1 and 2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.head import find_head
from cal_cli.objective.passes import (
    CACHED_SCORES,
    ForwardPass,
    find_image_columns,
    run_with_image,
    run_without_image,
    score_labels,
    select_model_inputs,
)
from cal_cli.objective.rules.base import SCORES

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


CONTRASTS = ("no_image", "masked_patches", "blur", "cached", "reference")
RATIO, SIGMA = 0.5, 1.0  # defaults: share of the patches that are covered, width of the blur in pixels


def check_contrast_options(
    condition: str | None, ratio: float | None = None, sigma: float | None = None, reference: Any = None
) -> None:
    """Raise ValueError if an option is outside its range, or the condition does not use it."""
    used = {"ratio": ("masked_patches",), "sigma": ("blur", "cached"), "reference": ("reference", "cached")}
    for name, value in (("ratio", ratio), ("sigma", sigma), ("reference", reference)):
        if value is not None and condition not in used[name]:
            allowed = " or ".join(f"contrast={choice}" for choice in used[name])
            raise ValueError(f"{name}={value} has no effect with contrast={condition}: it needs {allowed}")
    if sigma is not None and reference is not None:
        raise ValueError(f"sigma={sigma} and a reference exclude each other: the scores of one of them are cached")
    if ratio is not None and not 0 < ratio <= 1:
        raise ValueError(f"ratio={ratio}: the share of covered patches must be above 0 and at most 1")
    if sigma is not None and not sigma > 0:
        raise ValueError(f"sigma={sigma}: the blur's width in pixels must be above 0")


def score_without_image(
    forward: ForwardPass,
    condition: str,
    score: str,
    ratio: float | None = None,
    sigma: float | None = None,
    reference: Any = None,
) -> Tensor:
    """Score the label tokens of the samples that show an image, under a condition, without gradient.

    Args:
        forward: the pass with the image.
        condition: one of `CONTRASTS`.
        score: `logit` or `logprob`.
        ratio: share of the patches that `masked_patches` covers; None means 0.5.
        sigma: standard deviation of `blur` in pixels; None means 1.
        reference: the frozen model of `reference`.

    Returns:
        float32 [positions with an image].

    Raises:
        ValueError: the condition is not possible for this model or batch.
    """
    positions = forward.positions
    shown = positions.has_image
    labels = positions.labels[shown]
    if condition == "cached":
        return read_cached_scores(forward)
    if condition == "reference":
        return score_with_reference(forward, reference, score)
    if condition == "no_image":
        if forward.hidden_without_image is None:  # logits and log-probabilities share one pass
            forward.hidden_without_image = run_without_image(forward)
        return score_labels(forward.head, forward.hidden_without_image, labels, score)
    if not shown.any():
        return labels.new_empty(0, dtype=torch.float32)
    inputs = select_model_inputs(forward.batch)
    if condition == "blur":
        inputs["pixel_values"] = blur(inputs["pixel_values"], SIGMA if sigma is None else sigma)
    else:
        patch_size = forward.model.config.vision_config.patch_size
        inputs["pixel_values"] = cover_patches(inputs["pixel_values"], RATIO if ratio is None else ratio, patch_size)
    with torch.no_grad():
        hidden = forward.model.base_model(**inputs, use_cache=False).last_hidden_state
    return score_labels(forward.head, hidden[positions.rows[shown], positions.columns[shown]], labels, score)


def read_cached_scores(forward: ForwardPass) -> Tensor:
    """Read the scores of the label tokens from the batch, float32 [positions with an image].

    Raises ValueError if some are missing.
    """
    cached = forward.batch.get(CACHED_SCORES)
    if cached is None:
        raise ValueError(
            f"contrast=cached: the batch has no {CACHED_SCORES} (float32 [batch, length], at the labels' positions); "
            "compute them once with scores_without_image()"
        )
    positions = forward.positions
    shown = positions.has_image
    scores = cached[positions.rows[shown], positions.columns[shown] + 1].float()
    if scores.isnan().any():
        raise ValueError(f"contrast=cached: {CACHED_SCORES} lacks a supervised token; compute it from the same data")
    return scores


def score_with_reference(forward: ForwardPass, reference: Any, score: str) -> Tensor:
    """Score the label tokens with a frozen model that reads the text alone.

    Args:
        forward: the pass with the image.
        reference: a language model, or a vision-language model that is given no image, with the same tokenizer.
        score: `logit` or `logprob`.

    Returns:
        float32 [positions with an image].

    Raises:
        ValueError: no reference, one with another vocabulary, or a label with no text before it.
    """
    if reference is None:
        raise ValueError("contrast=reference needs a frozen model: give reference=...")
    batch, positions = forward.batch, forward.positions
    shown = positions.has_image
    samples, row = positions.rows[shown].unique(return_inverse=True)
    if not len(samples):
        return torch.empty(0, device=positions.rows.device)
    text = ~find_image_columns(forward.model, batch["input_ids"])
    if batch.get("attention_mask") is not None:
        text &= batch["attention_mask"].bool()
    text = text[samples]
    column = text.cumsum(dim=1)[row, positions.columns[shown]] - 1  # of the last word before the label
    if (column < 0).any():
        raise ValueError("contrast=reference: a supervised token has no text before it; let the text begin with one")
    order = text.int().argsort(dim=1, descending=True, stable=True)[:, : text.sum(dim=1).max()]
    inputs = {
        "input_ids": batch["input_ids"][samples[:, None], order],
        "attention_mask": text.gather(1, order).long(),
    }
    labels = positions.labels[shown]
    vocabulary = reference.get_input_embeddings().weight.shape[0]
    largest = max(int(labels.max()), int(inputs["input_ids"][inputs["attention_mask"].bool()].max()))
    if largest >= vocabulary:
        raise ValueError(
            f"the reference model has {vocabulary} words and the text holds token {largest}: it must share the "
            "tokenizer of the model in training"
        )
    with torch.no_grad():
        inputs["input_ids"] = inputs["input_ids"] * inputs["attention_mask"]
        outputs = reference.base_model(**inputs, use_cache=False)
        head = find_head(reference, inputs, outputs)
        return score_labels(head, outputs.last_hidden_state[row, column], labels, score)


def blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur images by a Gaussian, with edge pixels repeated, cut off at 4 sigma.

    Normalising an image and blurring it commute, so pixel values can be blurred instead of the image.

    Args:
        pixels: float [..., height, width].
        sigma: standard deviation in pixels.

    Raises:
        ValueError: the pixels are already cut into patches, as by Qwen's processor.
    """
    if pixels.dim() < 4:
        raise ValueError(
            f"contrast=blur needs pixel_values [..., channels, height, width], not {list(pixels.shape)}: this "
            "model's processor cuts the image into patches; use contrast=masked_patches"
        )
    reach = math.floor(4 * sigma + 0.5)
    offsets = torch.arange(-reach, reach + 1, device=pixels.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel = kernel / kernel.sum()
    planes = pixels.float().reshape(-1, 1, *pixels.shape[-2:])
    planes = F.conv2d(F.pad(planes, (reach, reach, 0, 0), mode="replicate"), kernel[None, None, None])
    planes = F.conv2d(F.pad(planes, (0, 0, reach, reach), mode="replicate"), kernel[None, None, :, None])
    return planes.view_as(pixels).to(pixels.dtype)


def cover_patches(pixels: Tensor, ratio: float, patch_size: int | tuple[int, int]) -> Tensor:
    """Set a random share of each image's patches to 0, the mean colour.

    Args:
        pixels: float [..., channels, height, width], or [patches, features] if the processor cuts the image into
            patches; then the share is that of all patches in the batch.
        ratio: share of the patches, in (0, 1].
        patch_size: height and width of a patch in pixels.
    """
    if pixels.dim() < 4:
        return pixels * ~_draw_share((1, len(pixels)), ratio, pixels.device).view(-1, *[1] * (pixels.dim() - 1))
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = math.ceil(pixels.shape[-2] / height), math.ceil(pixels.shape[-1] / width)
    images = pixels.shape[:-3]
    covered = _draw_share((math.prod(images), rows * columns), ratio, pixels.device).view(-1, rows, columns)
    covered = covered.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return pixels * ~covered[:, : pixels.shape[-2], : pixels.shape[-1]].view(*images, 1, *pixels.shape[-2:])


def _draw_share(shape: tuple[int, int], ratio: float, device: torch.device) -> Tensor:
    """Draw a bool tensor in which, in each row, a random `ratio` of the entries is true."""
    ranks = torch.rand(shape, device=device).argsort(dim=1).argsort(dim=1)
    return ranks < round(ratio * shape[1])
