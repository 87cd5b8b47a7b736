"""The pictures of a sample as its image tokens see them, for maps to be drawn over."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image

SIDE = 448  # pixels of the longer side of a picture on a page


def get_seen_pictures(model: Any, processor: Any, batch: Mapping[str, Any], opened: Sequence[Image.Image]) -> list:
    """Return the pictures of a batch with a single sample to which `find_image_grids` refers.

    These are the opened ones where the grid covers the whole picture, and else what the image processor makes of them,
    which may be padded or cut.
    """
    if batch.get("image_grid_thw") is not None or model.config.model_type == "llava_next":
        return list(opened)
    mean, std = (
        torch.tensor(getattr(processor.image_processor, name)).view(-1, 1, 1) for name in ("image_mean", "image_std")
    )
    seen = []
    for pixels in batch["pixel_values"].float().cpu():
        levels = (pixels * std + mean).clamp(0, 1).mul(255).round().byte()
        seen.append(Image.fromarray(levels.permute(1, 2, 0).numpy()))
    return seen


def enlarge(picture: Image.Image) -> Image.Image:
    """Return a picture whose longer side has `SIDE` pixels; pixels of a small one stay visible."""
    scale = SIDE / max(picture.size)
    size = (max(round(picture.width * scale), 1), max(round(picture.height * scale), 1))
    return picture.convert("RGB").resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS)
