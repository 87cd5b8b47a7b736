"""Load an MGM: a checkpoint, published or ours, or one assembled from a language model, a CLIP and a ConvNeXt."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import hf_hub_download
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, ConvNextConfig, ConvNextModel

from cal_cli.models.hub import fetch
from cal_cli.models.llava import assemble, load_projector
from cal_cli.models.load import ModelSource, load_config
from cal_cli.models.mgm.model import CONVNEXT_LARGE, MGMConfig, MGMForConditionalGeneration, PatchInfoMining
from cal_cli.runtime.errors import InputError

OPEN_CLIP = "open_clip_model.safetensors"  # the weights of a model of OpenCLIP, on the hub and in folders
TRUNK = "visual.trunk."  # of the names of its tower, before those of timm


@dataclass
class MGMSource(ModelSource):
    """Where an MGM comes from, see `ModelSource`.

    Args:
        aux_vision_tower: hub id or folder of the high-resolution tower: a `ConvNextModel`, or OpenCLIP's ConvNeXt-L.
        crops: 1, or 2 for MGM-HD.
        aux_image_size: side in pixels of what the high-resolution tower reads; None means 768 for each crop.
    """

    aux_vision_tower: str | None = None
    crops: int = 1
    aux_image_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crops < 1:
            raise InputError(f"model.crops={self.crops}: must be at least 1")
        if self.image_aspect_ratio == "anyres":
            raise InputError("model.image_aspect_ratio=anyres: MGM has crops, not tiles; allowed are square and pad")

    def load(self, seed: int = 0) -> tuple[Any, Any]:
        if self.path is not None:
            return super().load(seed)
        config = self.load_config()  # names what is missing
        assert self.language_model and self.vision_tower and self.aux_vision_tower
        aspect, template = self.image_aspect_ratio or "pad", self.template or "v1"
        llava, processor = assemble(
            self.language_model, self.vision_tower, None, aspect, template, self.torch_dtype, seed
        )
        tower = load_convnext(self.aux_vision_tower, self.torch_dtype)
        config = make_mgm_config(llava.config, tower.config, self.crops, self.aux_image_size)
        model = add_details(llava, tower, config)
        if self.projector is not None:
            load_projector(model, self.projector)
        return model, enlarge_images(processor, config)

    def load_processor(self) -> Any:
        if self.path is not None:
            return super().load_processor()
        return enlarge_images(super().load_processor(), self.load_config())

    def load_config(self) -> Any:
        if self.path is not None and (Path(self.path).is_dir() or self.language_model is None):
            return super().load_config()
        if self.aux_vision_tower is None:
            raise InputError("model.aux_vision_tower is null: give the high-resolution tower, or model.path=...")
        config = load_config(None, self.language_model, self.vision_tower, self.image_aspect_ratio)
        return make_mgm_config(config, load_convnext_config(self.aux_vision_tower), self.crops, self.aux_image_size)


def make_mgm_config(llava: Any, aux: Any, crops: int, aux_image_size: int | None) -> MGMConfig:
    """Make MGM's config from that of a LLaVA with the same language model and CLIP, and that of a ConvNeXt.

    Raises InputError if the images of both towers cannot be divided into the same places.
    """
    size = 768 * crops if aux_image_size is None else aux_image_size
    places = crops * (llava.vision_config.image_size // llava.vision_config.patch_size)
    if size // aux.patch_size % places:
        raise InputError(
            f"model.aux_image_size={size}: must be a multiple of {places * aux.patch_size}, so that each of the "
            f"{places} x {places} places owns equally many of the high-resolution tower"
        )
    options = {name: value for name, value in llava.to_dict().items() if name in LLAVA_KEYS}
    configs = {"text_config": llava.text_config, "vision_config": llava.vision_config, "aux_vision_config": aux}
    tokens = (places // crops) ** 2 * (1 if crops == 1 else 1 + crops**2)
    return MGMConfig(**(options | configs), aux_image_size=size, crops=crops, image_seq_length=tokens)


LLAVA_KEYS = (
    "image_token_index",
    "projector_hidden_act",
    "vision_feature_select_strategy",
    "vision_feature_layer",
    "multimodal_projector_bias",
    "tie_word_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
)


def add_details(llava: Any, tower: Any, config: MGMConfig) -> MGMForConditionalGeneration:
    """Make an MGM of a LLaVA and a ConvNeXt; the mining has random weights, and the other parts are those given."""
    dtype = llava.dtype
    with torch.device("meta"):
        model: Any = MGMForConditionalGeneration(config)
    for name in ("language_model", "vision_tower", "multi_modal_projector"):
        setattr(model.model, name, getattr(llava.model, name))
    model.lm_head = llava.lm_head
    tower.layernorm = torch.nn.Identity()  # of the pooled output, which is not used
    model.model.aux_vision_tower = tower
    aux: Any = config.aux_vision_config
    vision: Any = config.vision_config
    model.model.mining = PatchInfoMining(vision.hidden_size, sum(aux.hidden_sizes)).to(dtype)
    model.tie_weights()
    model.generation_config = llava.generation_config
    return model


def enlarge_images(processor: Any, config: MGMConfig) -> Any:
    """Let a LLaVA's processor make images for the high-resolution tower, and as many image tokens as MGM has."""
    side, vision = config.aux_image_size, config.vision_config
    places = config.crops * (vision.image_size // vision.patch_size)  # type: ignore[union-attr]
    processor.image_processor.size = {"shortest_edge": side}
    processor.image_processor.crop_size = {"height": side, "width": side}
    processor.patch_size = side // places
    processor.num_additional_image_tokens += config.image_seq_length - places**2
    return processor


def load_convnext_config(name: str) -> ConvNextConfig:
    """Load the config of a `ConvNextModel`; for a model of OpenCLIP, that of its ConvNeXt-L."""
    folder = Path(name)
    if (folder / "config.json").is_file():
        return fetch(AutoConfig.from_pretrained, name, "model.aux_vision_tower")
    return ConvNextConfig(**CONVNEXT_LARGE)  # type: ignore[arg-type]


def load_convnext(name: str, dtype: torch.dtype) -> ConvNextModel:
    """Load a `ConvNextModel` from its folder, or from the weights of OpenCLIP's ConvNeXt-L.

    Raises InputError if it cannot be loaded.
    """
    if (Path(name) / "config.json").is_file():
        return fetch(ConvNextModel.from_pretrained, name, "model.aux_vision_tower", dtype=dtype)
    file = Path(name) / OPEN_CLIP
    if not file.is_file():
        file = Path(fetch(lambda given: hf_hub_download(given, OPEN_CLIP), name, "model.aux_vision_tower"))
    weights = {key.removeprefix(TRUNK): value.to(dtype) for key, value in load_file(file).items() if TRUNK in key}
    known = {key: value for key, value in weights.items() if key.startswith(("stem.", "stages."))}
    model: Any = ConvNextModel(load_convnext_config(name))
    model = model.to(dtype)
    try:
        missing, unexpected = model.load_state_dict(rename_weights(known, CONVNEXT), strict=False)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"model.aux_vision_tower={name}: not OpenCLIP's ConvNeXt-L: {error}") from error
    if unexpected or set(missing) - {"layernorm.weight", "layernorm.bias"}:
        raise InputError(f"model.aux_vision_tower={name}: not OpenCLIP's ConvNeXt-L: {[*missing, *unexpected][0]}")
    return model


def convert_published(folder: Path, source: MGMSource) -> Any:
    """Make an MGM with the weights of a published checkpoint, a folder of `.safetensors` or `.bin` files.

    Args:
        folder: the checkpoint.
        source: defines the config: language model, towers and crops.

    Returns the model, with one row of embeddings for each row of the config: rows that the checkpoint does not have,
    such as that of the image token, are zeros.

    Raises InputError if a weight is unknown, missing, or of another shape.
    """
    config = source.load_config()
    weights = read_weights(folder)
    try:
        named = rename_weights(weights, PUBLISHED)
    except ValueError as error:
        raise InputError(f"checkpoint={folder}: {error}; is it a published MGM?") from error
    with torch.device("meta"):
        shapes = MGMForConditionalGeneration(config).state_dict()
    rows = config.text_config.vocab_size
    for name in ("model.language_model.embed_tokens.weight", "lm_head.weight"):
        if name in named and len(named[name]) < rows:
            named[name] = F.pad(named[name], (0, 0, 0, rows - len(named[name])))
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    if wrong := sorted((shapes.keys() - named.keys() - tied) | (named.keys() - shapes.keys())):
        raise InputError(f"checkpoint={folder}: {wrong[0]} is {'missing' if wrong[0] in shapes else 'left over'}")
    for name, value in named.items():
        if value.shape != shapes[name].shape:
            raise InputError(f"checkpoint={folder}: {name} is {list(value.shape)}, not {list(shapes[name].shape)}")
    empty: Any = None  # no folder: the weights are given
    return MGMForConditionalGeneration.from_pretrained(empty, config=config, state_dict=named, dtype=source.torch_dtype)


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights in a folder. Raises InputError if there are none."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        weights |= load_file(path)
    for path in sorted(folder.glob("*.bin")) if not weights else ():
        weights |= torch.load(path, map_location="cpu", weights_only=True)
    if not weights:
        raise InputError(f"checkpoint={folder}: no .safetensors or .bin file there")
    return weights


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
