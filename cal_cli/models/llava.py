"""Assemble a LLaVA from a language model, a vision tower and a projector between them (paper, stage 1).

The parts are models of `transformers`: any `AutoModelForCausalLM`, and a vision tower like CLIP's or SigLIP's, alone or
in a vision-language model. The result is a `LlavaForConditionalGeneration`, or a `LlavaNextForConditionalGeneration` if
images are cut into tiles (AnyRes).
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from cal_cli.models.hub import fetch, load_model
from cal_cli.runtime.errors import InputError

ASPECTS = ("square", "pad", "anyres")
# tiles (rows, columns) that AnyRes chooses from, in LLaVA-NeXT's order: the first of equally good ones is taken
GRID = [[2, 1], [1, 2], [2, 2], [1, 3], [3, 1]]
# embeddings are padded to a multiple of it, as in the converted checkpoints: 32,000 words become 32,064 rows
ROWS_MULTIPLE = 64
PROJECTOR = "projector.safetensors"
PROJECTOR_WEIGHTS = ("multi_modal_projector.", "image_newline", "mining.")  # with which their names begin


def assemble(
    language_model: str,
    vision_tower: str,
    projector: str | None = None,
    image_aspect_ratio: str = "pad",
    template: str = "v1",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Join a language model and a vision tower with a two-layer projector.

    Args:
        language_model: hub id or folder of an `AutoModelForCausalLM` with its tokenizer.
        vision_tower: hub id or folder of a CLIP or SigLIP model, or of a vision-language model with such a tower, and
            its image processor.
        projector: a folder with the `projector.safetensors` of `cal train stage=pretrain`; None means random weights.
        image_aspect_ratio: `square` (the shorter side fits, the rest is cut off), `pad` (padded to a square) or
            `anyres` (LLaVA-NeXT: tiles at up to three times the tower's size, and the whole image).
        template: of the conversation, `v1`, `plain` or a `.jinja` file.
        dtype: of the weights.
        seed: of random weights: the projector's, and the embeddings of new tokens.

    Returns the model and its processor.

    Raises InputError if a part cannot be loaded, or does not fit.
    """
    torch.manual_seed(seed)
    text: Any = load_model(AutoModelForCausalLM, language_model, "model.language_model", dtype, part=True)
    tokenizer = load_tokenizer_with_image(language_model)
    vision, tower_config = load_vision_tower(vision_tower, dtype)
    text.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=ROWS_MULTIPLE)
    config: Any = make_llava_config(
        text.config,
        tower_config,
        tokenizer.convert_tokens_to_ids("<image>"),
        tokenizer.pad_token_id,
        image_aspect_ratio,
    )
    model = make_empty_llava(config)
    model.model.language_model = text.get_decoder()
    model.model.vision_tower = vision
    model.lm_head = text.get_output_embeddings()
    width = config.text_config.hidden_size
    model.model.multi_modal_projector = type(model.model.multi_modal_projector)(config).to(dtype)
    if image_aspect_ratio == "anyres":
        model.model.image_newline = nn.Parameter(torch.randn(width, dtype=dtype) * width**-0.5)
    model.tie_weights()
    model.generation_config = text.generation_config
    allow_sampling(model.generation_config)
    for config_of in (model.config, model.generation_config):  # the Trainer would do the same, with a warning
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            setattr(config_of, name, getattr(tokenizer, name))
    if projector is not None:
        load_projector(model, projector)
    return model, make_llava_processor(config, tokenizer, vision_tower, image_aspect_ratio, template)


def load_vision_tower(name: str, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a vision tower, alone or from a vision-language model, and the config that it comes with."""
    config = fetch(AutoConfig.from_pretrained, name, "model.vision_tower")
    if type(config) in AutoModelForImageTextToText._model_mapping:
        whole: Any = load_model(AutoModelForImageTextToText, name, "model.vision_tower", dtype)
        return whole.get_encoder(modality="image"), config
    kind: Any = AutoModel._model_mapping[type(getattr(config, "vision_config", config))]
    return load_model(kind, name, "model.vision_tower", dtype, part=True), config


def allow_sampling(generation_config: Any) -> None:
    """Set `do_sample` if the config has sampling values without it, as Vicuna's has, which could not be saved."""
    try:
        generation_config.validate(strict=True)
    except ValueError:
        generation_config.do_sample = True


def load_tokenizer_with_image(language_model: str) -> Any:
    """Load a language model's tokenizer, and add the token `<image>`, and `<pad>` if it has no padding token.

    Raises InputError if there is none.
    """
    tokenizer = fetch(AutoTokenizer.from_pretrained, language_model, "model.language_model")
    add_image_token(tokenizer)
    return tokenizer


def add_image_token(tokenizer: Any) -> None:
    """Add the token `<image>` to a tokenizer, and `<pad>` if it has no padding token."""
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]}, replace_extra_special_tokens=False)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    tokenizer.padding_side = "right"


def make_llava_config(
    text: Any, tower: Any, image_token_id: int, pad_token_id: int | None, image_aspect_ratio: str
) -> LlavaConfig | LlavaNextConfig:
    """Make the config of the joint model: patch features of the tower's last but one layer, a projector with GELU.

    If the tower belongs to a vision-language model, its features are taken from the layer that this model reads.

    Raises InputError for an unknown aspect ratio.
    """
    if image_aspect_ratio not in ASPECTS:
        raise InputError(f"model.image_aspect_ratio={image_aspect_ratio}: allowed are {', '.join(ASPECTS)}")
    vision = getattr(tower, "vision_config", tower)
    has_class_token = vision.model_type.startswith("clip")
    patches = (vision.image_size // vision.patch_size) ** 2
    options: dict[str, Any] = {
        "text_config": text,
        "vision_config": vision,
        "image_token_index": image_token_id,
        "image_seq_length": patches,
        "vision_feature_layer": getattr(tower, "vision_feature_layer", -2),
        "tie_word_embeddings": text.tie_word_embeddings,
        "vision_feature_select_strategy": "default" if has_class_token else "full",
    }
    text.pad_token_id = pad_token_id
    if image_aspect_ratio != "anyres":
        return LlavaConfig(**options)
    side = vision.image_size
    return LlavaNextConfig(**options, image_grid_pinpoints=[[rows * side, columns * side] for rows, columns in GRID])


def make_empty_llava(config: Any) -> Any:
    """Make a model with this config on the meta device: shapes without weights."""
    kind = LlavaNextForConditionalGeneration if isinstance(config, LlavaNextConfig) else LlavaForConditionalGeneration
    with torch.device("meta"):
        return kind(config)


def make_llava_processor(config: Any, tokenizer: Any, vision_tower: str, image_aspect_ratio: str, template: str) -> Any:
    """Make a model's processor from its tokenizer and Pillow-based image processor, with a chat template.

    Raises InputError if a part of it is missing.
    """
    images_of = fetch(AutoImageProcessor.from_pretrained, vision_tower, "model.vision_tower")
    mean, std = images_of.image_mean, images_of.image_std
    side = config.vision_config.image_size
    size: dict[str, Any] = {"image_mean": mean, "image_std": std, "crop_size": {"height": side, "width": side}}
    size["size"] = {"shortest_edge": side}
    has_class_token = config.vision_feature_select_strategy == "default"
    options: dict[str, Any] = {
        "tokenizer": tokenizer,
        "patch_size": config.vision_config.patch_size,
        "vision_feature_select_strategy": config.vision_feature_select_strategy,
        "num_additional_image_tokens": int(has_class_token),
        "chat_template": make_chat_template(template, tokenizer),
    }
    if image_aspect_ratio == "anyres":
        tiles = LlavaNextImageProcessorPil(**size, image_grid_pinpoints=config.image_grid_pinpoints)
        return LlavaNextProcessor(image_processor=tiles, **options)
    images = LlavaImageProcessorPil(**size, do_pad=image_aspect_ratio == "pad")
    return LlavaProcessor(image_processor=images, **options)


def get_projector(model: Any) -> dict[str, torch.Tensor]:
    """Return the weights between vision tower and language model, by their names in the model; MGM's mining too."""
    return {name: value for name, value in model.model.state_dict().items() if name.startswith(PROJECTOR_WEIGHTS)}


def load_projector(model: Any, folder: str) -> None:
    """Load a projector that `cal train stage=pretrain` saved.

    Raises InputError if there is none, or one of another shape.
    """
    path = Path(folder) / PROJECTOR
    if not path.is_file():
        raise InputError(
            f"model.projector={folder}: no {PROJECTOR} there; give the projector/ of a run with stage=pretrain"
        )
    saved, own = load_file(path), get_projector(model)
    saved = {name: value for name, value in saved.items() if name != "image_newline" or name in own}
    for name, value in own.items():
        if name not in saved and name == "image_newline":
            continue  # a projector trained without tiles
        if name not in saved or saved[name].shape != value.shape:
            shape = list(saved[name].shape) if name in saved else "missing"
            raise InputError(f"model.projector={folder}: {name} is {shape}, the model needs {list(value.shape)}")
    whole: dict[str, Any] = {**saved}
    set_model_state_dict(model.model, whole, options=StateDictOptions(full_state_dict=True, strict=False))


def save_projector(weights: dict[str, torch.Tensor], folder: Path) -> None:
    """Write a projector's weights into an existing folder."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / PROJECTOR)


SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
TEMPLATES = Path(__file__).with_name("templates")
NAMES = ("v1", "plain", "gemma")


def make_chat_template(name: str, tokenizer: Any, image_token: str = "<image>") -> str:
    """Make the template for one tokenizer.

    LLaVA cuts a text at its images and tokenizes the pieces, so with Llama's tokenizer the first word and those after
    an image begin with the space that this tokenizer adds before any text. If the tokenizer does not add that space
    after a special token, the template writes it.

    `name` is `v1`, `plain`, `gemma`, or a file that ends in `.jinja`, which is used unchanged. The tokenizer must know
    `image_token` as one token.

    Raises InputError for another name, no such file, or a tokenizer without an end token.
    """
    if name.endswith(".jinja"):
        if not Path(name).is_file():
            raise InputError(f"model.template={name}: there is no such file")
        return Path(name).read_text(encoding="utf-8")
    if name not in NAMES:
        raise InputError(
            f"model.template={name}: allowed are {', '.join(NAMES)}, a .jinja file, or null for the model's own"
        )
    if tokenizer.eos_token is None:
        raise InputError(f"model.template={name}: the tokenizer has no end token to close each answer")
    text = (TEMPLATES / f"{name}.jinja").read_text()
    included = (TEMPLATES / "read_message.jinja").read_text()  # here, because chat templates are rendered without files
    text = text.replace('{%- include "read_message.jinja" -%}\n', included).replace("<system>", SYSTEM)
    text = text.replace("<space>", "" if tokenizer.tokenize(f"{image_token}a")[1:] == tokenizer.tokenize("a") else " ")
    text = text.replace("<image>", image_token)
    return text if tokenizer.bos_token else text.replace("{{- bos_token -}}\n", "")
