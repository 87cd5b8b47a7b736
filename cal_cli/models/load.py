"""Load a model and its processor: a checkpoint by hub id or folder, or a LLaVA assembled from parts."""

import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

from cal_cli.models.hub import ADAPTER, fetch, load_model
from cal_cli.models.llava import (
    PROJECTOR_WEIGHTS,
    ROWS_MULTIPLE,
    allow_sampling,
    assemble,
    load_projector,
    load_tokenizer_with_image,
    make_chat_template,
    make_llava_config,
    make_llava_processor,
)
from cal_cli.objective.passes import check_image_tokens, check_layers, check_loss
from cal_cli.runtime.errors import InputError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass
class ModelSource:
    """Where a model comes from: a checkpoint to continue from, or parts to assemble.

    A family that is loaded differently is a subclass with its own `load`, `load_processor` or `load_config`.

    Args:
        path: hub id or folder of an image-text-to-text model; None means assemble the parts.
        language_model: hub id or folder of a causal language model, see `assemble`.
        vision_tower: hub id or folder of a vision tower, see `assemble`.
        projector: a folder that `cal train stage=pretrain` wrote.
        image_aspect_ratio: `square`, `pad` or `anyres`; None means that of the checkpoint, or `pad`.
        template: of the conversation, `v1`, `plain` or a `.jinja` file; None means that of the checkpoint, or `v1`.
        dtype: of the weights, `float32` or `bfloat16`.

    Raises InputError for an unknown dtype.
    """

    path: str | None = None
    language_model: str | None = None
    vision_tower: str | None = None
    projector: str | None = None
    image_aspect_ratio: str | None = None
    template: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"model.dtype={self.dtype}: allowed are float32 and bfloat16")

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def load(self, seed: int = 0) -> tuple[Any, Any]:
        """Load the checkpoint, or assemble the parts.

        Args:
            seed: of a projector's random weights.

        Raises InputError if a value is missing or does not fit, or something cannot be loaded.
        """
        if self.path is None:
            if self.language_model is None or self.vision_tower is None:
                raise InputError(
                    "model.path is null: give model.path=..., or both model.language_model and vision_tower"
                )
            return assemble(
                self.language_model,
                self.vision_tower,
                self.projector,
                self.image_aspect_ratio or "pad",
                self.template or "v1",
                self.torch_dtype,
                seed,
            )
        given = () if self.projector is None else PROJECTOR_WEIGHTS
        model: Any = load_model(AutoModelForImageTextToText, self.path, "model.path", self.torch_dtype, without=given)
        if getattr(model.config, "quantization_config", None) is not None:
            raise InputError(
                f"model.path={self.path}: its weights are quantised and cannot be trained: give the model in full "
                "precision; peft=qlora rounds it while it is trained"
            )
        allow_sampling(model.generation_config)
        if self.projector is not None:
            load_projector(model, self.projector)
        processor = self.load_processor()
        verify_processor(processor, model, f"model.path={self.path}")
        return model, processor

    def load_processor(self) -> Any:
        """Load only the processor. Raises InputError if that is not possible."""
        if self.path is not None:
            processor = load_processor(self.path, "model.path")
            if self.image_aspect_ratio is not None:
                set_aspect_ratio(processor, self.image_aspect_ratio)
            if self.template is not None:
                processor.chat_template = make_chat_template(self.template, processor.tokenizer, processor.image_token)
            return processor
        config = self.load_config()
        assert self.language_model is not None and self.vision_tower is not None  # else there is no config
        tokenizer = load_tokenizer_with_image(self.language_model)
        config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
        aspect, template = self.image_aspect_ratio or "pad", self.template or "v1"
        return make_llava_processor(config, tokenizer, self.vision_tower, aspect, template)

    def load_config(self) -> Any:
        """Load only the config; for the paper's models it is known without network access.

        Raises InputError if it is not available.
        """
        return load_config(self.path, self.language_model, self.vision_tower, self.image_aspect_ratio)


def load_checkpoint(path: str, dtype: str | None = None, device: torch.device | None = None) -> tuple[Any, Any]:
    """Load a checkpoint (a folder or a hub id) in evaluation mode, with its processor.

    `dtype` None means float32 on a CPU, and that of the saved weights on a GPU; `device` None means the accelerator if
    there is one. Raises InputError if the checkpoint cannot be loaded, or for an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: allowed are {', '.join(DTYPES)}, or null")
    device = get_device() if device is None else device
    chosen: Any = DTYPES[dtype] if dtype is not None else torch.float32 if device.type == "cpu" else "auto"
    model: Any = load_model(AutoModelForImageTextToText, path, "checkpoint", chosen)
    processor = load_processor(path, "checkpoint")
    model = model.to(device).eval()
    verify_processor(processor, model, f"checkpoint={path}")
    return model, processor


def check_objective(config: Any, key: str, contrasts: bool = True) -> None:
    """Raise InputError, before data are read, if an objective cannot train a model with this config, or contrast it."""
    try:
        check_loss(config)
        if contrasts:
            check_image_tokens(config)
            check_layers(config.get_text_config())
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


def verify_processor(processor: Any, model: Any, named: str) -> None:
    """Verify that a processor makes what its model reads: known tokens, images, and as many image tokens as features.

    `named` is the checkpoint, as messages name it. Raises InputError if it does not.
    """
    tokens = max(processor.tokenizer.get_vocab().values()) + 1
    rows = model.get_input_embeddings().weight.shape[0]
    if tokens > rows:
        raise InputError(
            f"{named}: its tokenizer has {tokens} tokens, its embeddings {rows} rows: call "
            "model.resize_token_embeddings(len(tokenizer)) and save it again"
        )
    if hasattr(model.config, "quantization_config"):
        return
    llava = hasattr(processor, "num_additional_image_tokens")  # others count image tokens from their own config
    if llava and processor.image_token_id != model.config.image_token_id:
        ids = processor.image_token_id, model.config.image_token_id
        raise InputError(f"{named}: the image token is {ids[0]} in its processor and {ids[1]} in its config")
    if llava and processor.patch_size is None:
        raise InputError(
            f"{named}: its processor has no patch_size: write {model.config.vision_config.patch_size}, that of its "
            "vision tower, into processor_config.json"
        )
    side = model.config.vision_config.image_size if llava else 224
    image = Image.new("RGB", (side, side))
    try:
        features = compute_features(processor, model, image)
    except NotImplementedError:  # an operation that this device does not have in the model's dtype
        return
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"{named}: its vision tower does not read the images that its processor makes: "
            f"{str(error).splitlines()[0].rstrip('.')}: correct the image processor's values in processor_config.json"
        ) from error
    if not llava or features is None:
        return
    ids = processor(images=image, text=processor.image_token, return_tensors="pt")["input_ids"]
    made, wanted = int((ids == processor.image_token_id).sum()), sum(len(one) for one in features)
    if made != wanted:
        raise InputError(
            f"{named}: its processor makes {made} tokens of an image, its vision tower {wanted} features: correct "
            "patch_size, num_additional_image_tokens or vision_feature_select_strategy in processor_config.json"
        )


def compute_features(processor: Any, model: Any, image: Image.Image) -> Any:
    """Compute the features of an image, of each of its parts; None if a model has no method for that or needs more."""
    compute = getattr(model.base_model, "get_image_features", None)
    if compute is None:
        return None
    signature = inspect.signature(compute)
    pixels = processor.image_processor(images=image, return_tensors="pt").to(model.device, model.dtype)
    pixels = {name: value for name, value in pixels.items() if name in signature.parameters}
    try:
        signature.bind(**pixels)
    except TypeError:
        return None
    with torch.no_grad():
        return getattr(compute(**pixels), "pooler_output", None)


def load_processor(path: str, key: str) -> Any:
    """Load the processor of a checkpoint that the config names by `key`.

    Images are processed with Pillow, as in LLaVA, where the library has that for the checkpoint's kind: otherwise the
    pixels would depend on whether torchvision is installed. A tokenizer without a padding token pads with its unknown
    token, as LLaVA does, or else with its end token: padding is never attended to and never supervised.

    Raises InputError if it cannot be loaded, or its tokenizer has none of these tokens.
    """
    adapter = Path(path) / ADAPTER
    if adapter.is_file() and not list(Path(path).glob("*processor_config.json")):
        path = json.loads(adapter.read_text())["base_model_name_or_path"]
    processor = fetch(AutoProcessor.from_pretrained, path, key)
    # in a second call, because AutoProcessor passes `backend` to the tokenizer too
    processor.image_processor = fetch(AutoImageProcessor.from_pretrained, path, key, backend="pil")
    tokenizer = processor.tokenizer
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise InputError(f"{key}={path}: its tokenizer has no padding, unknown or end token; one of them is needed")
    return processor


def get_device() -> torch.device:
    """Return the accelerator if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def checkpoint_activations(model: Any) -> None:
    """Enable gradient checkpointing: keep only the inputs of layers, and compute the rest again when needed."""
    # the library renamed the method; the older name warns
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def set_aspect_ratio(processor: Any, image_aspect_ratio: str) -> None:
    """Let a checkpoint's processor fit images into a square as `square` or `pad`; `anyres` must be its own.

    Raises InputError if that is not supported.
    """
    images = processor.image_processor
    tiles = hasattr(images, "image_grid_pinpoints")
    if image_aspect_ratio == "anyres" and tiles:
        return
    if image_aspect_ratio not in ("square", "pad") or tiles or not hasattr(images, "crop_size"):
        raise InputError(
            f"model.image_aspect_ratio={image_aspect_ratio}: {type(images).__name__} does not support it; "
            "allowed is null, its own way" + ("" if tiles else ", and for LLaVA-1.5 square and pad")
        )
    if isinstance(images, CLIPImageProcessorPil):  # in LLaVA-1.5's converted checkpoints; it cannot pad
        known = ("size", "crop_size", "image_mean", "image_std")
        images = LlavaImageProcessorPil(**{name: getattr(images, name) for name in known})
    images.do_pad = image_aspect_ratio == "pad"
    processor.image_processor = images


NEW_TOKENS = 2  # <image> and <pad>, which assembling adds


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
        known = yaml.safe_load(Path(__file__).with_name("published_configs.yaml").read_text()).get(name)
        return AutoConfig.for_model(**known) if known else fetch(AutoConfig.from_pretrained, name, key)


def load_config(
    path: str | None, language_model: str | None, vision_tower: str | None, image_aspect_ratio: str | None
) -> Any:
    """Load the config of a checkpoint, or make that of the model assembled from parts; see `ModelSource`.

    If the checkpoint is not on this machine and its parts are given, their configs replace it.

    Raises InputError if it is not available.
    """
    if path is not None:
        if (Path(path) / ADAPTER).is_file():
            path = json.loads((Path(path) / ADAPTER).read_text())["base_model_name_or_path"]
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
