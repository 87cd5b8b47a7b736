"""What the image is compared with, and both scores of each label token (Algorithm 1, steps 1 and 2).

| contrast | the second score comes from | cost |
|---|---|---|
| `no_image` | the text alone (CAL) | one forward pass of the decoder over the text |
| `masked_patches` | the image with a share of its patches covered (the paper's tables 8 and 9) | a whole forward pass |
| `blur` | the image blurred by a Gaussian (the same tables) | a whole forward pass |
| `reference` | a frozen model that reads the text alone (PRIOR) | a forward pass of that model over the text |
| `cached` | `no_image`, `blur` or `reference`, computed once with the weights before training | nothing |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.head import find_head
from cal_cli.objective.passes import (
    CACHED_SCORES,
    ForwardPass,
    find_image_columns,
    run_below_head,
    run_with_image,
    run_without_image,
    score_labels,
    select_model_inputs,
)
from cal_cli.objective.rules.base import SCORES

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ImageContrast:
    """What the image is compared with. A subclass knows its own options and computes the second score."""

    name: ClassVar[str]

    def score(self, forward: ForwardPass, score: str) -> Tensor:
        """Score the label tokens of the samples that show an image, without gradient.

        Args:
            forward: the pass with the image.
            score: `logit` or `logprob`.

        Returns float32 [positions with an image].

        Raises ValueError if the contrast is not possible for this model or batch.
        """
        raise NotImplementedError


class OwnContrast(ImageContrast):
    """The model itself, shown something else than the image."""

    def compute_states(self, forward: ForwardPass) -> Tensor:
        """Compute the last hidden states without gradient, [positions with an image, hidden]; raises as `score`."""
        raise NotImplementedError

    def score(self, forward: ForwardPass, score: str) -> Tensor:
        labels = forward.positions.labels[forward.positions.has_image]
        return score_labels(forward.head, self.compute_states(forward), labels, score)


@dataclass
class NoImage(OwnContrast):
    """The text alone."""

    name = "no_image"

    def compute_states(self, forward: ForwardPass) -> Tensor:
        if forward.hidden_without_image is None:  # logits and log-probabilities share one pass
            forward.hidden_without_image = run_without_image(forward)
        return forward.hidden_without_image


class ChangedImage(OwnContrast):
    """The same image, changed."""

    def change(self, pixels: Tensor, model: Any) -> Tensor:
        """Return the pixel values of the changed images, in the same shape."""
        raise NotImplementedError

    def compute_states(self, forward: ForwardPass) -> Tensor:
        positions = forward.positions
        shown = positions.has_image
        if not shown.any():
            return forward.hidden.new_empty(0, forward.hidden.shape[-1])
        if forward.refusal is not None:
            raise ValueError(forward.refusal)
        inputs = select_model_inputs(forward.model, forward.batch)
        inputs["pixel_values"] = self.change(inputs["pixel_values"], forward.model)
        with torch.no_grad():
            outputs, _ = run_below_head(forward.model, inputs)
        return outputs.last_hidden_state[positions.rows[shown], positions.columns[shown]]


@dataclass
class MaskedPatches(ChangedImage):
    """The image with a random `ratio` of its patches, above 0 and at most 1, covered."""

    name = "masked_patches"
    ratio: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"ratio={self.ratio}: the share of covered patches must be above 0 and at most 1")

    def change(self, pixels: Tensor, model: Any) -> Tensor:
        return cover_patches(pixels, self.ratio, model.config.vision_config.patch_size)


@dataclass
class Blurred(ChangedImage):
    """The image blurred by a Gaussian with the standard deviation `sigma`, in pixels."""

    name = "blur"
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"sigma={self.sigma}: the blur's width in pixels must be above 0")

    def change(self, pixels: Tensor, model: Any) -> Tensor:
        return blur(pixels, self.sigma)


@dataclass
class Reference(ImageContrast):
    """A frozen model that reads the text alone: a language model, or a vision-language model, with the same tokenizer.

    `cal train` also accepts the model's folder here, and loads it.
    """

    name = "reference"
    model: Any = None

    def score(self, forward: ForwardPass, score: str) -> Tensor:
        if self.model is None:
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
        column = text.cumsum(dim=1)[row, positions.columns[shown]] - 1  # of the last token before the label
        if (column < 0).any():
            raise ValueError(
                "contrast=reference: a supervised token has no text before it; let the text begin with one"
            )
        order = text.int().argsort(dim=1, descending=True, stable=True)[:, : text.sum(dim=1).max()]
        mask = text.gather(1, order).long()
        inputs = {"input_ids": batch["input_ids"][samples[:, None], order] * mask, "attention_mask": mask}
        labels = positions.labels[shown]
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        largest = max(int(labels.max()), int(inputs["input_ids"].max()))
        if largest >= vocabulary:
            raise ValueError(
                f"the reference model has {vocabulary} words and the text holds token {largest}: it must share the "
                "tokenizer of the model in training"
            )
        with torch.no_grad():
            outputs, _ = run_below_head(self.model, inputs)
            head = find_head(self.model, inputs, outputs)
            return score_labels(head, outputs.last_hidden_state[row, column], labels, score)


@dataclass
class Cached(ImageContrast):
    """Scores that the batch carries, of another contrast, computed once with the model before training."""

    name = "cached"
    computed: ImageContrast

    def score(self, forward: ForwardPass, score: str) -> Tensor:
        cached = forward.batch.get(CACHED_SCORES)
        if cached is None:
            raise ValueError(
                f"contrast=cached: the batch has no {CACHED_SCORES} (float32 [batch, length], at the labels' "
                "positions); compute them once with scores_without_image()"
            )
        positions = forward.positions
        shown = positions.has_image
        scores = cached[positions.rows[shown], positions.columns[shown] + 1].float()
        if scores.isnan().any():
            raise ValueError(
                f"contrast=cached: {CACHED_SCORES} lacks a supervised token; compute it from the same data"
            )
        return scores


CONTRASTS = ("no_image", "masked_patches", "blur", "cached", "reference")
USED_BY = {"ratio": ("masked_patches",), "sigma": ("blur", "cached"), "reference": ("reference", "cached")}


def make_contrast(
    name: str | None, default: str, ratio: float | None = None, sigma: float | None = None, reference: Any = None
) -> ImageContrast | None:
    """Make a contrast from its name and options, those of configs; None for no name.

    `default` is what `cached` computes if neither a blur's `sigma` nor a `reference` is given.

    Raises ValueError if an option is outside its range, or the contrast does not use it.
    """
    given = {"ratio": ratio, "sigma": sigma, "reference": reference}
    given = {option: value for option, value in given.items() if value is not None}
    for option, value in given.items():
        if name not in USED_BY[option]:
            allowed = " or ".join(f"contrast={choice}" for choice in USED_BY[option])
            raise ValueError(f"{option}={value} has no effect with contrast={name}: it needs {allowed}")
    if len(given) > 1:
        raise ValueError(f"sigma={sigma} and a reference exclude each other: the scores of one of them are cached")
    if name == "cached":
        computed = "blur" if sigma is not None else "reference" if reference is not None else default
        inner = make_contrast(computed, default, sigma=sigma, reference=reference)
        assert inner is not None
        return Cached(inner)
    if name == "reference":
        return Reference(reference)
    kinds: dict[str, Any] = {"no_image": NoImage, "masked_patches": MaskedPatches, "blur": Blurred}
    return None if name is None else kinds[name](**given)


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


def contrast_tokens(forward: ForwardPass, contrast: ImageContrast | None = None, score: str = "logit") -> Contrast:
    """Score the label tokens of a forward pass with the image and under a contrast, without gradient.

    `contrast` None means `NoImage`; `score` is `logit` or `logprob`. Raises ValueError as the contrast does.
    """
    positions = forward.positions
    with torch.no_grad():
        with_image = score_labels(forward.head, forward.hidden, positions.labels, score)
        without_image = with_image.clone()
        without_image[positions.has_image] = (contrast or NoImage()).score(forward, score)
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
        contrast = contrast_tokens(run_with_image(model, batch), score=score)
    if not torch.isfinite(contrast.delta).all():
        rows = contrast.sample_index[~torch.isfinite(contrast.delta)].unique().tolist()
        raise FloatingPointError(
            f"a {score} of the labels is nan or infinite in row {', '.join(map(str, rows))} of the batch: look at "
            "these samples' pixel values and at the model's weights"
        )
    return contrast


def blur(pixels: Tensor, sigma: float) -> Tensor:
    """Blur images by a Gaussian, with edge pixels repeated, cut off at 4 sigma.

    Normalising an image and blurring it commute, so pixel values can be blurred instead of the image.

    Args:
        pixels: float [..., height, width].
        sigma: standard deviation in pixels.

    Raises ValueError if the pixels are already cut into patches, as by Qwen's processor.
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
    """Set a random fraction of each image's patches to 0, the mean colour.

    Args:
        pixels: float [..., channels, height, width], or [patches, features] if the processor cuts the image into
            patches; then the fraction is that of all patches in the batch.
        ratio: fraction of the patches, in (0, 1].
        patch_size: height and width of a patch in pixels.
    """

    def draw(rows: int, patches: int) -> Tensor:  # bool [rows, patches]: a random `ratio` of each row is true
        return torch.rand((rows, patches), device=pixels.device).argsort(dim=1).argsort(dim=1) < round(ratio * patches)

    if pixels.dim() < 4:
        return pixels * ~draw(1, len(pixels)).view(-1, *[1] * (pixels.dim() - 1))
    height, width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    rows, columns = math.ceil(pixels.shape[-2] / height), math.ceil(pixels.shape[-1] / width)
    images = pixels.shape[:-3]
    covered = draw(math.prod(images), rows * columns).view(-1, rows, columns)
    covered = covered.repeat_interleave(height, dim=1).repeat_interleave(width, dim=2)
    return pixels * ~covered[:, : pixels.shape[-2], : pixels.shape[-1]].view(*images, 1, *pixels.shape[-2:])
