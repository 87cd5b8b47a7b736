"""LoRA and QLoRA with peft: adapters in the language model's linear layers; the projector is trained in full."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cal_cli.models.quantization import dequantize, quantize
from cal_cli.runtime.errors import InputError


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

    Returns:
        A `peft.PeftModel`.

    Raises:
        InputError: peft is not installed, or bitsandbytes if it is needed, or a value is wrong.
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
    names = [name for name, _ in model.named_modules()]
    between = [part for part in ("multi_modal_projector", "connector") if any(name.endswith(part) for name in names)]
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
    """Return the names of the linear layers that get adapters: all of the decoder's, without its head."""
    names = {id(module): name for name, module in model.named_modules()}
    decoder, head = names[id(model.get_decoder())], names.get(id(model.get_output_embeddings()))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{decoder}.") and name != head
    ]


def merge_adapters(model: Any, adapter: Path) -> Any:
    """Add the adapters to the weights, in place.

    Four-bit weights are converted to full precision first: rounding the sum again would give another model.

    Args:
        model: as `add_adapters` returns it.
        adapter: a folder with the current adapters.

    Returns:
        The image-text-to-text model, without peft's wrapper.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return model.merge_and_unload()
    from peft import PeftModel

    base = model.unload().to("cpu")  # full weights may not fit where the rounded ones did
    dequantize(base)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
