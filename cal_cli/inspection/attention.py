"""Figure 5 of the paper: where text looks, by attention and by relevancy, and where image tokens are in the image."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from cal_cli.objective.passes import find_image_columns, find_positions, select_model_inputs

SINK = 20.0  # largest entry of a sink's hidden state, relative to its root mean square


@dataclass
class Attention:
    """How the tokens of one sample attend to each other, from the positions that predict the supervised tokens.

    Attributes:
        position: int64 [tokens], columns of the supervised tokens in `input_ids`.
        weights: float32 [layers, tokens, columns], means over heads: the attention of the position before each token,
            whose prediction it is.
        sinks: bool [layers, columns], see `find_sinks`.
    """

    position: Tensor
    weights: Tensor
    sinks: Tensor

    def select(self, columns: Tensor, remove_sinks: bool) -> Tensor:
        """Return the attention to some columns, float32 [layers, tokens, selected]; that to sinks as 0 if removed."""
        weights = self.weights[:, :, columns]
        return weights.masked_fill(self.sinks[:, None, columns], 0.0) if remove_sinks else weights


def record_attention(model: PreTrainedModel, batch: Mapping[str, Any]) -> Attention:
    """Run a model on a single sample, and record its attention.

    Raises ValueError if the model's class returns no attention of text to all tokens.
    """
    positions = find_positions(model, batch)
    with compute_attention(model), torch.no_grad():
        outputs = run(model, batch, output_hidden_states=True)
    weights = torch.stack([layer[0].float().mean(dim=0)[positions.columns] for layer in outputs.attentions])
    layers = outputs.hidden_states[: len(weights)]  # the inputs of the layers; the last one is the output
    return Attention(positions.columns + 1, weights, torch.stack([find_sinks(layer[0]) for layer in layers]))


def compute_relevancy(model: PreTrainedModel, batch: Mapping[str, Any], tokens: Sequence[int] | None = None) -> Tensor:
    """Compute how relevant each column is for each supervised token of a single sample: float32 [tokens, columns].

    `tokens` are numbers of supervised tokens; None means all. Each takes a backward pass.

    With A_l the attention of layer l and G_l the gradient of the token's logit with respect to it, the mean over heads
    of the positive part of G_l * A_l is propagated from the first layer to the last: R = R + mean_h(G_l * A_l)^+ R,
    from the identity. The result is the row of R of the position that predicts the token, without its own start.

    Source: Chefer, Gur, Wolf, "Generic Attention-model Explainability", ICCV 2021, equations 5 and 6.

    Raises ValueError as `record_attention`.
    """
    positions = find_positions(model, batch)
    rows = []
    with compute_attention(model), torch.enable_grad():
        outputs = run(model, batch)
        chosen = range(len(positions.labels)) if tokens is None else tokens
        for column, label in ((int(positions.columns[token]), int(positions.labels[token])) for token in chosen):
            logit = outputs.logits[0, column, label]
            gradients = torch.autograd.grad(logit, outputs.attentions, retain_graph=True)
            row = torch.zeros(len(batch["input_ids"][0]), device=logit.device)
            row[column] = 1.0
            for weights, gradient in reversed(list(zip(outputs.attentions, gradients, strict=True))):
                row = row + row @ (weights[0] * gradient[0]).detach().float().clamp_min(0).mean(dim=0)
            row[column] -= 1.0
            rows.append(row)
    return torch.stack(rows)


def find_sinks(hidden: Tensor) -> Tensor:
    """Find attention sinks by their hidden states, [columns, hidden] -> bool [columns].

    A sink receives attention from everywhere and says nothing of the image; a few entries of its hidden state are far
    larger than all others. Here a sink is a column whose largest entry is at least `SINK` times the root mean square.

    Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025, with all
    entries in place of those that they found for each model.
    """
    states = hidden.float()
    return states.abs().amax(dim=-1) >= SINK * states.square().mean(dim=-1).sqrt()


def run(model: PreTrainedModel, batch: Mapping[str, Any], **options: Any) -> Any:
    """Run a model on a batch, with its attention in the output.

    Raises ValueError if the model's class returns none, or none of text to all tokens, as with cross-attention.
    """
    outputs = model(**select_model_inputs(model, batch), output_attentions=True, use_cache=False, **options)
    length = batch["input_ids"].shape[1]
    layers = outputs.attentions or [None]
    if any(layer is None or layer.shape[-2:] != (length, length) for layer in layers):
        raise ValueError(
            f"{type(model).__name__}: its class returns no attention of text to image tokens, so it cannot be shown"
        )
    return outputs


@contextmanager
def compute_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention step by step, since fused implementations return none."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@dataclass
class ImageGrid:
    """The image tokens of one image.

    Attributes:
        columns: int64 [tokens], of `input_ids`.
        boxes: float32 [tokens, 4], left, upper, right and lower edge of what a token covers, as shares of the image's
            width and height; nan for a token without a place, such as the end of a line.
        shape: rows and columns of the finest grid of the image.
    """

    columns: Tensor
    boxes: Tensor
    shape: tuple[int, int]

    def draw(self, values: Tensor) -> Tensor:
        """Spread numbers of the tokens over the grid, in proportion to area.

        float [..., tokens] -> [..., rows, columns]. The sum stays the same, but for tokens without a place.
        """
        rows, columns = self.shape
        left, upper, right, lower = self.boxes.nan_to_num().T
        across = overlap(left * columns, right * columns, columns)
        down = overlap(upper * rows, lower * rows, rows)
        cells = down[:, :, None] * across[:, None, :]  # [tokens, rows, columns], each token's area in each cell
        shares = cells / cells.sum(dim=(1, 2), keepdim=True).clamp_min(1e-12)
        return torch.einsum("...t,tij->...ij", values, shares.to(values))

    def find_inside(self, box: tuple[float, float, float, float]) -> Tensor:
        """Find the tokens that cover a part of a box, given as shares of width and height: bool [tokens]."""
        left, upper, right, lower = self.boxes.T
        return (left < box[2]) & (right > box[0]) & (upper < box[3]) & (lower > box[1])


def overlap(begin: Tensor, end: Tensor, cells: int) -> Tensor:
    """Return how much of each cell of length 1 an interval covers: float [tokens] -> [tokens, cells]."""
    edges = torch.arange(cells, device=begin.device)
    return (torch.minimum(end[:, None], edges + 1) - torch.maximum(begin[:, None], edges)).clamp_min(0)


def find_image_grids(model: PreTrainedModel, batch: Mapping[str, Any]) -> list[ImageGrid]:
    """Find the grids of the images of a batch with a single sample, in their order in the text.

    LLaVA-NeXT's tiles, and grids of Qwen-VL's patches, refer to the image as it is; other grids to what the image
    processor makes of it, which may be padded or cut, and of which each token covers a square.

    Raises ValueError if it is not known where the model's image tokens belong.
    """
    columns = find_image_columns(model, batch["input_ids"])[0].nonzero()[:, 0]
    if batch.get("image_grid_thw") is not None:
        merge = model.config.vision_config.spatial_merge_size
        boxes = [place_rows(int(h) // merge, int(w) // merge) for _, h, w in batch["image_grid_thw"].tolist()]
    elif model.config.model_type == "llava_next":
        boxes = [place_tiles(model, size) for size in batch["image_sizes"].cpu()]
    else:
        sizes = [tuple(pixels.shape[-2:]) for pixels in get_seen_pixels(batch)]
        side = max(math.isqrt(sum(height * width for height, width in sizes) // max(len(columns), 1)), 1)
        grids = [(height // side, width // side) for height, width in sizes]
        covered = [(side * rows, side * across) for rows, across in grids] == sizes != []
        if not covered or sum(rows * across for rows, across in grids) != len(columns):
            raise ValueError(
                f"{type(model).__name__}: it is not known where its image tokens belong in the image; supported are "
                "grids over the whole image such as LLaVA's, LLaVA-NeXT's tiles, and Qwen-VL's patches"
            )
        boxes = [place_rows(rows, across) for rows, across in grids]
    if sum(map(len, boxes)) != len(columns):
        raise ValueError(f"{type(model).__name__}: {len(columns)} image tokens, but {sum(map(len, boxes))} places")
    parts = columns.split([len(cells) for cells in boxes])
    return [ImageGrid(part, cells, get_shape(cells)) for part, cells in zip(parts, boxes, strict=True)]


def get_seen_pixels(batch: Mapping[str, Any]) -> list[Tensor]:
    """Return the pixels that the vision tower reads of each image, [channels, height, width]; none for tiles."""
    pixels = batch.get("pixel_values")
    if pixels is not None and pixels.dim() == 5 and pixels.shape[1] == 1:  # Idefics3 without splitting
        pixels = pixels[:, 0]
    if pixels is None or pixels.dim() != 4:
        return []
    sizes = batch.get("image_sizes")  # where images are padded to the largest of the batch, as Pixtral's are
    sizes = [pixels.shape[-2:]] * len(pixels) if sizes is None else sizes.tolist()
    return [image[:, :height, :width] for image, (height, width) in zip(pixels, sizes, strict=True)]


def place_rows(rows: int, columns: int) -> Tensor:
    """Return the boxes of a grid's cells, row by row: float32 [rows * columns, 4]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    edges = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
    return torch.stack([edge.flatten() for edge in edges], dim=1)


def place_tiles(model: Any, size: Tensor) -> Tensor:
    """Return the boxes of LLaVA-NeXT's tokens for an image: the whole image first, then its tiles, line by line.

    The model's own packing sorts coordinates in place of features, so padding is removed as the model removes it.

    Args:
        model: the model.
        size: int64 [2], height and width of the image.
    """
    from transformers.models.llava_next.modeling_llava_next import get_anyres_image_grid_shape

    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    whole = place_rows(side, side)
    rows, columns = get_anyres_image_grid_shape(size, model.config.image_grid_pinpoints, vision.image_size)
    row, column = torch.meshgrid(torch.arange(rows * side), torch.arange(columns * side), indexing="ij")
    tiles = torch.stack([row, column], dim=-1).view(rows, side, columns, side, 2).transpose(1, 2)
    features = torch.cat([torch.full((1, side * side, 2), -1), tiles.reshape(-1, side * side, 2)]).float()
    newline = torch.full((2,), torch.nan)
    ((packed,), _) = model.base_model.pack_image_features([features], size[None], "default", newline)
    places = packed[side * side :]
    first = places.nan_to_num(torch.inf).amin(dim=0)
    count = places.nan_to_num(-torch.inf).amax(dim=0) + 1 - first
    upper, left = ((places - first) / count).T
    boxes = torch.stack([left, upper, left + 1 / count[1], upper + 1 / count[0]], dim=1)
    return torch.cat([whole, boxes])


def get_shape(boxes: Tensor) -> tuple[int, int]:
    """Return the rows and columns of the finest grid that boxes are cells of."""
    placed = boxes[~boxes.isnan().any(dim=1)]
    width, height = (placed[:, 2] - placed[:, 0]).min(), (placed[:, 3] - placed[:, 1]).min()
    return round(1 / float(height)), round(1 / float(width))


def get_seen_images(model: Any, processor: Any, batch: Mapping[str, Any], opened: Sequence[Image.Image]) -> list:
    """Return the images of a batch with a single sample to which `find_image_grids` refers.

    These are the opened ones where the grid covers the whole image, and else what the image processor makes of them,
    which may be padded or cut.
    """
    if batch.get("image_grid_thw") is not None or model.config.model_type == "llava_next":
        return list(opened)
    mean, std = (
        torch.tensor(getattr(processor.image_processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std")
    )
    seen = []
    for pixels in get_seen_pixels(batch):
        levels = (pixels.float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()
        seen.append(Image.fromarray(levels.permute(1, 2, 0).numpy()))
    return seen
