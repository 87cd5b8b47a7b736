"""The config of a model without its weights: from its files, or as published for the paper's models."""

from pathlib import Path
from typing import Any

from transformers import AutoConfig, CLIPVisionConfig, GemmaConfig, LlamaConfig

from cal_cli.models.hub import fetch
from cal_cli.models.llava import ROWS_MULTIPLE, make_llava_config
from cal_cli.runtime.errors import InputError

NEW_TOKENS = 2  # <image> and <pad>, which assembling adds


def get_published_config(name: str) -> Any:
    """Return the config of a part of the paper's models, as on the hub; None for any other name.

    Sources: config.json of lmsys/vicuna-7b-v1.5, lmsys/vicuna-13b-v1.5, google/gemma-2b-it and
    openai/clip-vit-large-patch14-336.
    """
    if name == "google/gemma-2b-it":
        return GemmaConfig(
            vocab_size=256000,
            hidden_size=2048,
            intermediate_size=16384,
            num_hidden_layers=18,
            num_attention_heads=8,
            num_key_value_heads=1,
            head_dim=256,
            max_position_embeddings=8192,
        )
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


def load_part_config(name: str, key: str) -> Any:
    """Load the config of a language model or a vision tower.

    The hub is asked last: without network access it answers only after many retries.

    Raises InputError if it is neither on this machine, nor one of the paper's parts, nor available from the hub.
    """
    try:
        return fetch(AutoConfig.from_pretrained, name, key, local_files_only=True)
    except InputError:
        if Path(name).is_dir():
            raise
        known = get_published_config(name)
        return fetch(AutoConfig.from_pretrained, name, key) if known is None else known


def load_config(
    path: str | None, language_model: str | None, vision_tower: str | None, image_aspect_ratio: str | None
) -> Any:
    """Load the config of a checkpoint, or make that of the model assembled from parts; see `ModelSource`.

    If the checkpoint is not on this machine and its parts are given, their configs replace it.

    Raises InputError if it is not available.
    """
    if path is not None:
        try:
            return fetch(AutoConfig.from_pretrained, path, "model.path", local_files_only=True)
        except InputError:
            if Path(path).is_dir():
                raise
            if language_model is None or vision_tower is None:
                return fetch(AutoConfig.from_pretrained, path, "model.path")
    if language_model is None or vision_tower is None:
        raise InputError("model.path is null: give model.path=..., or both model.language_model and vision_tower")
    text = load_part_config(language_model, "model.language_model")
    tower = load_part_config(vision_tower, "model.vision_tower")
    rows = text.vocab_size + NEW_TOKENS
    image_token_id, text.vocab_size = text.vocab_size, -(-rows // ROWS_MULTIPLE) * ROWS_MULTIPLE
    return make_llava_config(text, tower, image_token_id, text.pad_token_id, image_aspect_ratio or "pad")
