"""Names of MGM's weights elsewhere: ConvNeXt's in timm and OpenCLIP, and those of published MGM checkpoints."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

# of timm's ConvNeXt, behind `stem.` and `stages.`; MGM's checkpoints call these `vision_stem.` and `vision_stages.`
CONVNEXT = [
    (r"(?:vision_)?stem\.0\.(.*)", r"embeddings.patch_embeddings.\1"),
    (r"(?:vision_)?stem\.1\.(.*)", r"embeddings.layernorm.\1"),
    (r"(?:vision_)?stages\.(\d+)\.downsample\.(\d)\.(.*)", r"encoder.stages.\1.downsampling_layer.\2.\3"),
    (r"(?:vision_)?stages\.(\d+)\.blocks\.(\d+)\.gamma", r"encoder.stages.\1.layers.\2.layer_scale_parameter"),
    (r"(?:vision_)?stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.(.*)", r"encoder.stages.\1.layers.\2.dwconv.\3"),
    (r"(?:vision_)?stages\.(\d+)\.blocks\.(\d+)\.norm\.(.*)", r"encoder.stages.\1.layers.\2.layernorm.\3"),
    (r"(?:vision_)?stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc(\d)\.(.*)", r"encoder.stages.\1.layers.\2.pwconv\3.\4"),
]
PUBLISHED = [
    (r"lm_head\.(.*)", r"lm_head.\1"),
    (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?(.*)", r"model.vision_tower.\1"),
    (r"model\.mm_projector\.0\.(.*)", r"model.multi_modal_projector.linear_1.\1"),
    (r"model\.mm_projector\.2\.(.*)", r"model.multi_modal_projector.linear_2.\1"),
    (r"model\.vlm_uni_query_projector\.(.*)", r"model.mining.query.\1"),
    (r"model\.vlm_uni_aux_projector\.(.*)", r"model.mining.key.\1"),
    (r"model\.vlm_uni_val_projector\.(.*)", r"model.mining.value.\1"),
    *((rf"model\.vision_tower_aux\.{old}", rf"model.aux_vision_tower.{new}") for old, new in CONVNEXT),
    (r"model\.((?:embed_tokens|layers|norm)\..*)", r"model.language_model.\1"),
]


def rename_weights(weights: Mapping[str, Tensor], names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Return weights under their new names, each by the first pattern that its whole name matches.

    Raises ValueError if a weight has no new name, or two have the same.
    """
    names, renamed = list(names), {}
    for name, weight in weights.items():
        matches = ((re.fullmatch(pattern, name), new) for pattern, new in names)
        new = next((match.expand(new) for match, new in matches if match), None)
        if new is None or new in renamed:
            raise ValueError(f"{name}: {'is not a known weight' if new is None else 'is there twice'}")
        renamed[new] = weight
    return renamed
