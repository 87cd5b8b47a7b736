"""A model's config without its weights: from its files where they are at hand, else as published."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, LlamaConfig

from cal_cli.errors import InputError
from cal_cli.models.assemble import ROWS_MULTIPLE, llava_config
from cal_cli.models.hub import fetched
from cal_cli.models.load import TINY_BASE

NEW_TOKENS = 2  # <image> and <pad>, which assembling adds


def published(name: str) -> Any:
    """The config of a part that the paper's models are made of, as on the hub; None for any other name.

    Sources: config.json of lmsys/vicuna-7b-v1.5, lmsys/vicuna-13b-v1.5 and openai/clip-vit-large-patch14-336.
    """
    if name == "openai/clip-vit-large-patch14-336":
        return CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=336,
            patch_size=14,
        )
    sizes = {"lmsys/vicuna-7b-v1.5": (4096, 11008, 32, 32), "lmsys/vicuna-13b-v1.5": (5120, 13824, 40, 40)}
    if name not in sizes:
        return None
    hidden, inner, layers, heads = sizes[name]
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        max_position_embeddings=4096,
    )


def part_config(name: str, key: str) -> Any:
    """The config of a language model or a vision tower.

    Raises:
        InputError: it is neither at hand nor one that is known.
    """
    try:
        return fetched(AutoConfig.from_pretrained, name, key)
    except InputError:
        known = published(name)
        if known is None:
            raise
        return known


def outline(model: dict[str, Any]) -> Any:
    """The config of the model that a `model` node of a run's config names.

    Raises:
        InputError: it is not to be had.
    """
    parts = (model.get("language_model"), model.get("vision_tower"))
    if "language_model" not in model and model.get("path") is None:
        return AutoConfig.from_pretrained(TINY_BASE)
    if model.get("path") is not None:
        try:
            return fetched(AutoConfig.from_pretrained, model["path"], "model.path")
        except InputError:
            if None in parts or Path(model["path"]).is_dir():
                raise
    if None in parts:
        raise InputError("model.path is null: give model.path=..., or both model.language_model and vision_tower")
    text = part_config(parts[0], "model.language_model")  # type: ignore[arg-type]
    tower = part_config(parts[1], "model.vision_tower")  # type: ignore[arg-type]
    rows = text.vocab_size + NEW_TOKENS
    image_token_id, text.vocab_size = text.vocab_size, -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
    return llava_config(text, tower, image_token_id, text.pad_token_id, model.get("image_aspect_ratio") or "pad")
