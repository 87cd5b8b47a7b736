"""The parts of a vision-language model: their learning rates, and adapters (LoRA, QLoRA) in the language model."""

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cal_cli.objective.head import get_head_module
from cal_cli.runtime.errors import InputError

Rates = Mapping[str, float | None]  # of the parts, see `freeze_parts`
SAMPLED = 100_000  # weights of a parameter that `describe_rounding` looks at, about
PARTS = ("language_model", "projector", "image_newline", "vision_tower")
# modules between tower and language model that some families keep within the tower, as Qwen-VL its merger
WITHIN_TOWER = re.compile(
    r"(^|\.)(?!vit_)\w*(merger|connector|projector|resampler|aligner|adapter|img_projection)\w*\."
)
# encoders beside that of the image: MGM's and DeepSeek's second one, those of videos and sound, and discrete ones
OTHER_TOWERS = re.compile(r"(^|\.)(\w*(vision|image|video|audio)_(tower|model|encoder)|vqmodel)\.")


def group_parameters(model: Any) -> dict[str, list[nn.Parameter]]:
    """Group a model's parameters by part; each belongs to one.

    The language model is the decoder with its embeddings and head, the vision tower is the image encoder, with all
    other encoders, without what projects their features, and `image_newline` is LLaVA-NeXT's embedding between rows of
    tiles; all other parameters belong to the projector.
    """
    vision, head = model.get_encoder(modality="image"), get_head_module(model)
    seen = {id(parameter) for parameter in vision.parameters() if vision is not model}
    owners = {
        "language_model": [
            *model.get_decoder().parameters(),
            *model.get_input_embeddings().parameters(),
            *(head.parameters() if head is not None else ()),
        ],
        "vision_tower": [
            parameter
            for name, parameter in model.named_parameters()
            if (id(parameter) in seen or OTHER_TOWERS.search(name)) and not WITHIN_TOWER.search(name)
        ],
        "image_newline": [p for name, p in model.named_parameters() if name.endswith("image_newline")],
    }
    part = {id(parameter): name for name, parameters in owners.items() for parameter in parameters}
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in PARTS}
    for parameter in model.parameters():
        groups[part.get(id(parameter), "projector")].append(parameter)
    return groups


def freeze_parts(model: Any, rates: Rates, adapted: bool = False) -> dict[str, float]:
    """Freeze the parts whose rate is 0, and unfreeze the others.

    Args:
        model: an image-text-to-text model.
        rates: by part, its learning rate as a multiple of the run's; None means that of the projector.
        adapted: adapters will be trained, which keep `image_newline` frozen.

    Returns the rates, without None.

    Raises InputError for an unknown part, one that the model does not have or that cannot be trained, a negative rate,
    or nothing left to train.
    """
    unknown = sorted(set(rates) - set(PARTS))
    if unknown:
        raise InputError(f"parts.{unknown[0]}: there is no such part; parts are {', '.join(PARTS)}")
    groups = group_parameters(model)
    for name, rate in rates.items():
        if rate is not None and rate < 0:
            raise InputError(f"parts.{name}={rate}: must be at least 0, where 0 freezes the part")
        if rate and not groups[name]:
            raise InputError(f"parts.{name}={rate}: a {type(model).__name__} has no such part: give parts.{name}=0")
    if adapted and rates.get("image_newline"):
        raise InputError("parts.image_newline: peft cannot train it: give parts.image_newline=0, or leave peft out")
    complete = complete_rates(rates, adapted)
    for name, parameters in groups.items():
        for parameter in parameters:
            parameter.requires_grad_(complete[name] > 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        given = ", ".join(f"parts.{name}={rate}" for name, rate in rates.items())
        raise InputError(f"{given}: nothing is left to train; give a part of the model a rate above 0")
    return complete


def complete_rates(rates: Rates, adapted: bool = False) -> dict[str, float]:
    """Return the rate of each part, see `freeze_parts`; that of a part without one is 1."""
    projector = rates.get("projector", 1.0)
    given = {name: rates.get(name, 1.0) for name in PARTS} | ({"image_newline": 0.0} if adapted else {})
    return {name: float(projector if rate is None else rate) for name, rate in given.items()}  # type: ignore[arg-type]


def count_trainable(model: Any) -> dict[str, int]:
    """Count the parameters of each part that are trained."""
    groups = group_parameters(model)
    return {name: sum(p.numel() for p in members if p.requires_grad) for name, members in groups.items()}


def describe_rounding(model: Any, rates: Mapping[str, float], learning_rate: float) -> str | None:
    """Describe whether most of the trained weights are in bfloat16 and too large to move by a step; None otherwise.

    A step of AdamW is about as long as the learning rate. It is lost if it is shorter than half of the distance to the
    next number, which is 2^-8 of a weight that is a power of 2.
    """
    lost, total = 0.0, 0
    for name, parameters in group_parameters(model).items():
        for parameter in parameters:
            if parameter.requires_grad and parameter.dtype == torch.bfloat16:
                values = parameter.detach().flatten()[:: max(parameter.numel() // SAMPLED, 1)].float()
                spacing = torch.exp2(torch.frexp(values).exponent - 8.0)
                lost += float((spacing / 2 > rates[name] * learning_rate).float().mean()) * parameter.numel()
                total += parameter.numel()
    if lost <= total / 2:
        return None
    return (
        f"model.dtype=bfloat16: a step at learning_rate={learning_rate:g} is too short to move {lost / total:.0%} of "
        "the trained weights: give model.dtype=float32 with bf16=true, which computes in bfloat16 on full weights"
    )


def trains_only_projector(rates: Mapping[str, float]) -> bool:
    """Return whether language model and vision tower are frozen, so that only `projector/` need be saved."""
    return rates.get("language_model", 1.0) == 0 == rates.get("vision_tower", 1.0)


def set_rates(optimizer: torch.optim.Optimizer, model: Any, rates: Mapping[str, float]) -> None:
    """Split an optimizer's groups by part, each with its rate; the group with the highest rate comes first.

    Trainers log the learning rate of the first group.
    """
    rate = {id(p): rates.get(name, 1.0) for name, parameters in group_parameters(model).items() for p in parameters}
    split = []
    for group in optimizer.param_groups:
        for value in sorted({rate[id(p)] for p in group["params"]}, reverse=True):
            chosen = [p for p in group["params"] if rate[id(p)] == value]
            split.append({**group, "params": chosen, "lr": group["lr"] * value})
    optimizer.param_groups[:] = sorted(split, key=lambda group: -group["lr"])


@dataclass
class AdapterConfig:
    """The types of `conf/peft/`, which documents each key."""

    r: int
    alpha: int
    dropout: float
    bits: int | None


def add_adapters(model: Any, adapters: AdapterConfig, rates: Mapping[str, float]) -> Any:
    """Wrap a model so that adapters are trained instead of the language model's own weights.

    Args:
        model: an image-text-to-text model.
        adapters: rank, alpha and dropout; the output of an adapter is scaled by alpha / r. With `bits=4` the weights
            under the adapters are rounded, see `quantize`.
        rates: by part, see `freeze_parts`; the language model's must be above 0, the vision tower's 0.

    Returns a `peft.PeftModel`.

    Raises InputError if peft is not installed, or bitsandbytes if it is needed, or a value is wrong.
    """
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("peft=lora needs peft: pip install 'cal_cli[lora]'") from error
    if adapters.r < 1 or not 0 <= adapters.dropout < 1 or adapters.alpha <= 0:
        raise InputError(
            f"peft: r={adapters.r} must be at least 1, alpha={adapters.alpha} above 0 and dropout={adapters.dropout} "
            "from 0 to below 1"
        )
    if adapters.bits not in (None, 4):
        raise InputError(f"peft.bits={adapters.bits}: allowed are 4, and null for weights that are not rounded")
    if rates.get("vision_tower", 1.0) > 0 or rates.get("language_model", 1.0) == 0:
        raise InputError(
            "peft=lora trains adapters of the language model and the projector: give parts.vision_tower=0 and a "
            "parts.language_model above 0"
        )
    layers = find_adapted_layers(model)
    if adapters.bits is not None:
        quantize(model, layers)
    projector = {id(parameter) for parameter in group_parameters(model)["projector"]}
    between: list[str] = []  # the outermost modules of the projector
    for name, module in model.named_modules():
        own = {id(parameter) for parameter in module.parameters()}
        if own and own <= projector and not any(name.startswith(f"{outer}.") for outer in between):
            between.append(name)
    config = LoraConfig(
        r=adapters.r,
        lora_alpha=adapters.alpha,
        lora_dropout=adapters.dropout,
        target_modules=layers,
        modules_to_save=between if rates.get("projector", 1.0) > 0 else None,
    )
    with warnings.catch_warnings():  # peft 0.21 reads a name that transformers 5.23 deprecates
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, config)


def find_adapted_layers(model: Any) -> list[str]:
    """Return the names of the linear layers that get adapters: all of the language model's, without its head.

    Subclasses of linear layers, such as Llama 4's router, return something else than a product, and get none.
    """
    own = {id(parameter) for parameter in group_parameters(model)["language_model"]}
    head = get_head_module(model)
    return [
        name
        for name, module in model.named_modules()
        if type(module) is nn.Linear and id(module.weight) in own and module is not head
    ]


def merge_adapters(model: Any, adapter: Path) -> Any:
    """Add the adapters to the weights, in place.

    Four-bit weights are converted to full precision first: rounding the sum again would give another model.

    Args:
        model: as `add_adapters` returns it.
        adapter: a folder with the current adapters.

    Returns the image-text-to-text model, without peft's wrapper.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return model.merge_and_unload()
    from peft import PeftModel

    base = model.unload().to("cpu")  # full weights may not fit where the rounded ones did
    dequantize(base)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()


def quantize(model: Any, layers: Iterable[str]) -> None:
    """Round linear layers' weights to four bits (NF4, with eight-bit scales), in place.

    Products are computed in bfloat16 if the accelerator supports it, else in float32.

    Raises InputError if bitsandbytes is not installed.
    """
    try:
        from bitsandbytes.nn import Linear4bit, Params4bit
    except ImportError as error:
        raise InputError("peft=qlora needs bitsandbytes: pip install 'cal_cli[qlora]'") from error
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    for name in layers:
        whole = model.get_submodule(name)
        small = Linear4bit(
            whole.in_features,
            whole.out_features,
            bias=whole.bias is not None,
            compute_dtype=torch.bfloat16 if half else torch.float32,
            quant_type="nf4",
            device="meta",
        )
        small.weight = Params4bit(whole.weight.data, requires_grad=False, quant_type="nf4", module=small)
        small.bias = whole.bias
        model.set_submodule(name, small.to(whole.weight.device))  # rounds the weights
    model.is_loaded_in_4bit = True  # peft reads this


def dequantize(model: Any) -> None:
    """Replace four-bit linear layers by plain ones that hold the rounded weights."""
    from bitsandbytes.nn import Linear4bit
    from transformers.integrations.bitsandbytes import dequantize_bnb_weight

    small = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    for name, module in small.items():
        whole = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        whole.weight = nn.Parameter(dequantize_bnb_weight(nn.Module.get_parameter(module, "weight")).to(model.dtype))
        whole.bias = module.bias
        model.set_submodule(name, whole)
    model.is_loaded_in_4bit = False
