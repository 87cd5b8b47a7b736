"""What the image is held against: the choices of `contrast`, and what each costs.

| contrast | the second score comes from | costs |
|---|---|---|
| `no_image` | the text alone (CAL) | one forward of the decoder over the text |
| `masked_patches` | the picture with a share of its patches covered (table 8 of the paper) | a whole forward |
| `blur` | the picture blurred by a Gaussian (table 9) | a whole forward |
| `reference` | a frozen model that reads the text alone (PRIOR) | a forward of that model over the text |
| `cached` | any of these, computed once before training, with the weights of then | nothing |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.contrast import (
    CACHED_SCORES,
    FirstPass,
    Positions,
    image_columns,
    label_scores,
    model_inputs,
    text_states,
)
from cal_cli.objective.head import language_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONTRASTS = ("no_image", "masked_patches", "blur", "cached", "reference")


def scores_to_contrast(
    options: Any, first: FirstPass, batch: Mapping[str, Any], positions: Positions, with_image: Tensor
) -> Tensor:
    """Score the labels against what `options.contrast` says; samples without an image keep their own scores.

    Args:
        options: holds `contrast`, `score` and what the contrast needs: `ratio`, `sigma`, `reference`.
        first: the pass with the image.
        batch: what it was given.
        positions: the positions to score.
        with_image: float32 [positions], their scores with the image.

    Returns:
        float32 [positions].

    Raises:
        ValueError: the contrast cannot be had for this model or batch.
    """
    shown = positions.has_image
    scores = with_image.clone()
    if options.contrast == "cached":
        scores[shown] = cached_scores(batch, positions)
    elif options.contrast == "reference":
        scores[shown] = reference_scores(options.reference, first.model, batch, positions, options.score)
    elif options.contrast == "no_image":
        scores[shown] = label_scores(
            first.head, text_states(first, batch, positions), positions.labels[shown], options.score
        )
    elif shown.any():
        inputs = model_inputs(batch)
        pixels = inputs["pixel_values"]
        if options.contrast == "blur":
            inputs["pixel_values"] = blur(pixels, options.sigma)
        else:
            inputs["pixel_values"] = cover_patches(pixels, options.ratio, first.model.config.vision_config.patch_size)
        with torch.no_grad():
            hidden = first.model.base_model(**inputs, use_cache=False).last_hidden_state
        states = hidden[positions.rows[shown], positions.columns[shown]]
        scores[shown] = label_scores(first.head, states, positions.labels[shown], options.score)
    return scores


def cached_scores(batch: Mapping[str, Any], positions: Positions) -> Tensor:
    """Read the scores of the tokens whose samples show an image, float32 [positions with an image].

    Raises:
        ValueError: the batch holds none, or not for all of these tokens.
    """
    cached = batch.get(CACHED_SCORES)
    if cached is None:
        raise ValueError(
            f"contrast=cached: the batch has no {CACHED_SCORES} (float32 [batch, length], at the labels' places); "
            "compute them once with scores_without_image()"
        )
    shown = positions.has_image
    scores = cached[positions.rows[shown], positions.columns[shown] + 1].float()
    if scores.isnan().any():
        raise ValueError(f"contrast=cached: {CACHED_SCORES} lacks a supervised token; compute it from the same data")
    return scores


def reference_scores(
    reference: Any, model: PreTrainedModel, batch: Mapping[str, Any], positions: Positions, score: str
) -> Tensor:
    """Score the labels of samples with an image by a frozen model that reads their text alone.

    Args:
        reference: a language model, or a vision-language model given no image, with the tokenizer of `model`.
        model: the model in training; its config names the image's columns, which are dropped.
        batch: `input_ids`, `attention_mask`, ...
        positions: the positions to score.
        score: `logit` or `logprob`.

    Returns:
        float32 [positions with an image].

    Raises:
        ValueError: no reference, one of another vocabulary, or a label with no text before it.
    """
    if reference is None:
        raise ValueError("contrast=reference needs a frozen model: give reference=...")
    shown = positions.has_image
    samples, row = positions.rows[shown].unique(return_inverse=True)
    if not len(samples):
        return torch.empty(0, device=positions.rows.device)
    text = ~image_columns(model, batch["input_ids"])
    if batch.get("attention_mask") is not None:
        text &= batch["attention_mask"].bool()
    text = text[samples]
    place = text.cumsum(dim=1)[row, positions.columns[shown]] - 1  # of the last word before the label
    if (place < 0).any():
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
        head = language_head(reference, inputs, outputs)
        return label_scores(head, outputs.last_hidden_state[row, place], labels, score)


def blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur pictures by a Gaussian, continued at their edges, cut off at 4 sigma.

    Normalising a picture and blurring it commute, so this is the same on pixel values as on the picture.

    Args:
        pixels: float [..., height, width].
        sigma: standard deviation in pixels.

    Raises:
        ValueError: pixels that were cut into patches already, as Qwen's processor does.
    """
    if pixels.dim() < 4:
        raise ValueError(
            f"contrast=blur needs pixel_values [..., channels, height, width], not {list(pixels.shape)}: this "
            "model's processor cuts the picture into patches; use contrast=masked_patches"
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
    """Set a random share of each picture's patches to 0, the mean colour.

    Args:
        pixels: float [..., channels, height, width], or [patches, features] where the processor cuts the picture
            into patches; there the share is that of all the batch's patches.
        ratio: share of the patches, in (0, 1].
        patch_size: height and width of a patch in pixels.
    """
    if pixels.dim() < 4:
        return pixels * ~_random_share((1, len(pixels)), ratio, pixels.device).view(-1, *[1] * (pixels.dim() - 1))
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = math.ceil(pixels.shape[-2] / height), math.ceil(pixels.shape[-1] / width)
    pictures = pixels.shape[:-3]
    covered = _random_share((math.prod(pictures), rows * columns), ratio, pixels.device).view(-1, rows, columns)
    covered = covered.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return pixels * ~covered[:, : pixels.shape[-2], : pixels.shape[-1]].view(*pictures, 1, *pixels.shape[-2:])


def _random_share(shape: tuple[int, int], ratio: float, device: torch.device) -> Tensor:
    """bool of the shape; in each row `ratio` of the places, chosen at random, are true."""
    ranks = torch.rand(shape, device=device).argsort(dim=1).argsort(dim=1)
    return ranks < round(ratio * shape[1])
