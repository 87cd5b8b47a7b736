"""Where in the picture each image token looks from: grids of patches, AnyRes tiles put back in their place."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cal_cli.objective.forward import find_image_columns


@dataclass
class ImageGrid:
    """The image tokens of one picture.

    Attributes:
        columns: int64 [tokens], of `input_ids`.
        boxes: float32 [tokens, 4], left, upper, right and lower edge of what a token covers, as shares of the picture's
            width and height; nan for a token without a place, such as the end of a line.
        shape: rows and columns of the finest grid of the picture.
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
    """Find the grids of the pictures of a batch with a single sample, in their order in the text.

    LLaVA-NeXT's tiles, and grids of Qwen-VL's patches, refer to the picture as it is; square grids to what the image
    processor makes of it, which may be padded or cut.

    Raises ValueError if it is not known where the model's image tokens belong.
    """
    columns = find_image_columns(model, batch["input_ids"])[0].nonzero()[:, 0]
    if batch.get("image_grid_thw") is not None:
        merge = model.config.vision_config.spatial_merge_size
        boxes = [place_rows(int(h) // merge, int(w) // merge) for _, h, w in batch["image_grid_thw"].tolist()]
    elif model.config.model_type == "llava_next":
        boxes = [place_tiles(model, size) for size in batch["image_sizes"].cpu()]
    else:
        pictures = len(batch["pixel_values"]) if batch.get("pixel_values") is not None else 0
        side = math.isqrt(len(columns) // max(pictures, 1))
        if not pictures or side * side * pictures != len(columns):
            raise ValueError(
                f"{type(model).__name__}: it is not known where its image tokens belong in the picture; supported are "
                "square grids such as LLaVA's, LLaVA-NeXT's tiles, and Qwen-VL's patches"
            )
        boxes = [place_rows(side, side)] * pictures
    if sum(map(len, boxes)) != len(columns):
        raise ValueError(f"{type(model).__name__}: {len(columns)} image tokens, but {sum(map(len, boxes))} places")
    parts = columns.split([len(one) for one in boxes])
    return [ImageGrid(part, one, get_shape(one)) for part, one in zip(parts, boxes, strict=True)]


def place_rows(rows: int, columns: int) -> Tensor:
    """Return the boxes of a grid's cells, row by row: float32 [rows * columns, 4]."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    edges = (column / columns, row / rows, (column + 1) / columns, (row + 1) / rows)
    return torch.stack([edge.flatten() for edge in edges], dim=1)


def place_tiles(model: Any, size: Tensor) -> Tensor:
    """Return the boxes of LLaVA-NeXT's tokens for a picture: the whole picture first, then its tiles, line by line.

    The model's own packing sorts coordinates in place of features, so padding is removed as the model removes it.

    Args:
        model: the model.
        size: int64 [2], height and width of the picture.
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
