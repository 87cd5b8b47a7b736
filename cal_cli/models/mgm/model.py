"""MGM (Mini-Gemini): a LLaVA whose image tokens mine a second, high-resolution tower for details.

The classes are registered with the Auto classes of `transformers` when this module is imported, and this is done by
`import cal_cli`.

Source: Li et al., "Mini-Gemini: Mining the Potential of Multi-modality Vision Language Models", arXiv 2403.18814, and
the repository dvlab-research/MGM.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    PreTrainedConfig,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling

# OpenCLIP's ConvNeXt-L; stochastic depth stays on while its weights are frozen, as in the published training
CONVNEXT_LARGE = {"depths": [3, 3, 27, 3], "hidden_sizes": [192, 384, 768, 1536], "drop_path_rate": 0.1}


class MGMConfig(LlavaConfig):
    """The config of MGM.

    `aux_vision_config` is that of the high-resolution tower, a ConvNeXt; `aux_image_size` is the side in pixels of the
    image that it reads. With `crops` above 1 (MGM-HD: 2) the other tower reads crops x crops parts of the image and
    the whole image, each at its own size.
    """

    model_type = "mgm"
    sub_configs: ClassVar[dict[str, type]] = {**LlavaConfig.sub_configs, "aux_vision_config": AutoConfig}

    aux_vision_config: dict | PreTrainedConfig | None = None
    aux_image_size: int = 768
    crops: int = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.aux_vision_config, PreTrainedConfig):
            given = CONVNEXT_LARGE if self.aux_vision_config is None else self.aux_vision_config
            self.aux_vision_config = AutoConfig.for_model(**{"model_type": "convnext", **given})
        super().__post_init__(**kwargs)


class PatchInfoMining(nn.Module):
    """Each place of the low-resolution map attends to its own places of the high-resolution map, with one head.

    Args:
        low: channels of the low-resolution map, and of the result.
        high: channels of the high-resolution map.
    """

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(low), nn.Linear(low, low))
        self.key = nn.Sequential(nn.LayerNorm(high), nn.Linear(high, low))
        self.value = nn.Sequential(nn.LayerNorm(high), nn.Linear(high, low))

    def forward(self, places: Tensor, details: Tensor) -> Tensor:
        """Add what is mined to the places.

        Args:
            places: [images, places, low].
            details: [images, places, details of a place, high].

        Returns [images, places, low].
        """
        query, key, value = self.query(places)[:, :, None], self.key(details), self.value(details)
        return places + F.scaled_dot_product_attention(query, key, value)[:, :, 0]


class MGMModel(LlavaModel):
    """LLaVA's model with a high-resolution tower and patch-info mining before the projector."""

    config: MGMConfig  # type: ignore[assignment]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.aux_vision_tower = AutoModel.from_config(config.aux_vision_config)
        self.aux_vision_tower.layernorm = nn.Identity()  # of the pooled output, which is not used
        self.mining = PatchInfoMining(config.vision_config.hidden_size, sum(config.aux_vision_config.hidden_sizes))
        self.post_init()

    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:  # type: ignore[override]
        """Compute the image tokens of images, float [images, channels, height, width] at the high resolution.

        Returns an output whose `pooler_output` has [tokens, hidden] for each image: the whole image's tokens first,
        then, with several crops, those of each crop, row by row.
        """
        config: Any = self.config
        size, crops, count = config.vision_config.image_size, config.crops, len(pixel_values)
        dtype = self.vision_tower.dtype
        small = resize(pixel_values, crops * size)
        # the high-resolution tower's stages, each enlarged to the first one's size
        stages = self.aux_vision_tower(pixel_values.to(dtype), output_hidden_states=True).hidden_states[-4:]
        large = torch.cat([resize(stage, stages[0].shape[-1]) for stage in stages], dim=1)
        if crops > 1:
            small = torch.cat([resize(small, size), cut(small, crops)])
            large = torch.cat([resize(large, large.shape[-1] // crops), cut(large, crops)])
        states = self.vision_tower(small.to(dtype), output_hidden_states=True).hidden_states[
            config.vision_feature_layer
        ]
        places = states[:, 1:] if config.vision_feature_select_strategy == "default" else states
        mined = self.mining(places, group_by_place(large, round(places.shape[1] ** 0.5)))
        features = self.multi_modal_projector(mined)  # [images, and crops x crops for each, places, hidden]
        whole, parts = features[:count], features[count:].unflatten(0, (count, -1)) if crops > 1 else None
        tokens = whole if parts is None else torch.cat([whole, parts.flatten(1, 2)], dim=1)
        listed: Any = list(tokens)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=listed)


class MGMForConditionalGeneration(LlavaForConditionalGeneration):
    """MGM with its language head."""

    config: MGMConfig  # type: ignore[assignment]

    def __init__(self, config: MGMConfig) -> None:
        super().__init__(config)
        self.model = MGMModel(config)
        self.post_init()


def resize(maps: Tensor, side: int) -> Tensor:
    """Resize maps, [images, channels, height, width], bilinearly, in float32 and without aligned corners."""
    if maps.shape[-1] == side:
        return maps
    return F.interpolate(maps.float(), size=(side, side), mode="bilinear", align_corners=False).to(maps.dtype)


def cut(maps: Tensor, crops: int) -> Tensor:
    """Cut maps, [images, channels, height, width], into crops x crops parts each, row by row."""
    images, channels, height, width = maps.shape
    parts = maps.view(images, channels, crops, height // crops, crops, width // crops)
    return parts.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, height // crops, width // crops)


def group_by_place(maps: Tensor, side: int) -> Tensor:
    """Group the places of maps by the place of a side x side grid that they belong to.

    [images, channels, height, width] -> [images, side * side, height // side * width // side, channels].
    """
    images, channels, height, width = maps.shape
    parts = maps.view(images, channels, side, height // side, side, width // side)
    return parts.permute(0, 2, 4, 3, 5, 1).reshape(images, side * side, -1, channels)


AutoConfig.register("mgm", MGMConfig)
AutoModel.register(MGMConfig, MGMModel)
AutoModelForImageTextToText.register(MGMConfig, MGMForConditionalGeneration)
