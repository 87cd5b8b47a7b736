"""A published model and its processor: a checkpoint to continue from, or parts to assemble."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cal_cli.errors import InputError
from cal_cli.models.assemble import assemble, llava_processor, load_projector, tokenizer_with_image
from cal_cli.models.hub import fetched
from cal_cli.models.load import load_model
from cal_cli.models.outline import outline
from cal_cli.models.templates import chat_template

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def pretrained(
    path: str | None = None,
    language_model: str | None = None,
    vision_tower: str | None = None,
    projector: str | None = None,
    image_aspect_ratio: str | None = None,
    template: str | None = None,
    dtype: str = "float32",
    seed: int = 0,
) -> tuple[Any, Any]:
    """Load a checkpoint, or assemble a LLaVA from a language model and a vision tower.

    Args:
        path: hub id or folder of an image-text-to-text model; None means assemble.
        language_model: see `assemble`, as the arguments below.
        vision_tower: hub id or folder.
        projector: a folder that `cal train stage=pretrain` wrote.
        image_aspect_ratio: `square`, `pad` or `anyres`; None means as the checkpoint has it, or `pad`.
        template: of the conversation, `v1`, `plain` or a `.jinja` file; None means the checkpoint's own, or `v1`.
        dtype: of the weights, `float32` or `bfloat16`.
        seed: of a projector's random weights.

    Raises:
        InputError: a value is missing, unknown or fits nothing, or something cannot be loaded.
    """
    if dtype not in DTYPES:
        raise InputError(f"model.dtype={dtype}: allowed are {' and '.join(DTYPES)}")
    if path is None:
        if language_model is None or vision_tower is None:
            raise InputError("model.path is null: give model.path=..., or both model.language_model and vision_tower")
        return assemble(
            language_model,
            vision_tower,
            projector,
            image_aspect_ratio or "pad",
            template or "v1",
            DTYPES[dtype],
            seed,
        )
    model = fetched(AutoModelForImageTextToText.from_pretrained, path, "model.path", dtype=DTYPES[dtype])
    if projector is not None:
        load_projector(model, projector)
    return model, checkpoint_processor(path, image_aspect_ratio, template)


def checkpoint_processor(path: str, image_aspect_ratio: str | None, template: str | None) -> Any:
    """A checkpoint's processor, changed as asked for; see `pretrained`.

    Raises:
        InputError: there is none, or it cannot be changed so.
    """
    processor = fetched(AutoProcessor.from_pretrained, path, "model.path")
    if image_aspect_ratio is not None:
        set_aspect_ratio(processor, image_aspect_ratio)
    if template is not None:
        processor.chat_template = chat_template(template, processor.tokenizer, processor.image_token)
    return processor


def processor_of(model: Mapping[str, Any]) -> Any:
    """The processor of the model that a `model` node of a run's config names, its weights not loaded.

    Raises:
        InputError: a part of it is not to be had.
    """
    if "language_model" not in model and "template" not in model:
        return load_model(**{name: value for name, value in model.items() if name != "_target_"})[1]
    path, aspect, template = model.get("path"), model.get("image_aspect_ratio"), model.get("template")
    if path is not None:
        return checkpoint_processor(path, aspect, template)
    tokenizer = tokenizer_with_image(model["language_model"])
    config = outline(dict(model))
    config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    return llava_processor(config, tokenizer, model["vision_tower"], aspect or "pad", template or "v1")


def set_aspect_ratio(processor: Any, image_aspect_ratio: str) -> None:
    """Have a checkpoint's processor fit pictures into a square as `square` or `pad` say; `anyres` must be its own.

    Raises:
        InputError: the checkpoint cannot do it.
    """
    images = processor.image_processor
    tiles = hasattr(images, "image_grid_pinpoints")
    if image_aspect_ratio == "anyres" and tiles:
        return
    if image_aspect_ratio not in ("square", "pad") or tiles or not hasattr(images, "crop_size"):
        raise InputError(
            f"model.image_aspect_ratio={image_aspect_ratio}: the checkpoint's {type(images).__name__} does not do it; "
            "allowed is null, its own way" + ("" if tiles else ", and for LLaVA-1.5 square and pad")
        )
    if isinstance(images, CLIPImageProcessorPil):  # LLaVA-1.5's converted checkpoints have it; it cannot pad
        known = ("size", "crop_size", "image_mean", "image_std")
        images = LlavaImageProcessorPil(**{name: getattr(images, name) for name in known})
    images.do_pad = image_aspect_ratio == "pad"
    processor.image_processor = images
