"""LoRA and QLoRA through peft: adapters in the language model's linear layers, and the projector trained whole."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from cal_cli.errors import InputError
from cal_cli.training.quantized import dequantize, quantize


@dataclass
class AdapterConfig:
    """The types of `conf/peft/`."""

    r: int
    alpha: int
    dropout: float
    bits: int | None


def with_adapters(model: Any, adapters: AdapterConfig, rates: Mapping[str, float]) -> Any:
    """Wrap a model so that adapters learn in place of the language model's own weights.

    Args:
        model: an image-text-to-text model.
        adapters: rank, alpha and dropout; what an adapter adds is scaled by alpha / r. With 4 `bits` the weights under
            them are rounded, see `quantize`.
        rates: by part, see `train_parts`; the language model's must be above 0, and the vision tower's 0.

    Returns:
        A `peft.PeftModel`.

    Raises:
        InputError: peft is not installed, or bitsandbytes where it is needed, or a value is wrong.
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
        raise InputError(f"peft.bits={adapters.bits}: allowed are 4, and null for weights as they are")
    if rates.get("vision_tower", 1.0) > 0 or rates.get("language_model", 1.0) == 0:
        raise InputError(
            "peft=lora trains adapters of the language model and the projector: give parts.vision_tower=0 and a "
            "parts.language_model above 0"
        )
    layers = adapted_layers(model)
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
    with warnings.catch_warnings():  # peft 0.21 asks for a name that transformers 5.23 is about to give up
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        return get_peft_model(model, config)


def adapted_layers(model: Any) -> list[str]:
    """The names of a model's linear layers that get adapters: all of the decoder's, its head left out."""
    names = {id(module): name for name, module in model.named_modules()}
    decoder, head = names[id(model.get_decoder())], names.get(id(model.get_output_embeddings()))
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(f"{decoder}.") and name != head
    ]


def merged(model: Any, adapter: Path) -> Any:
    """The model with what its adapters have learnt added to its weights, in place.

    Weights in four bits become plain ones first: a sum that was rounded again would be another model.

    Args:
        model: as `with_adapters` returns it.
        adapter: a folder with the adapters as they are now.

    Returns:
        The image-text-to-text model, without peft around it.
    """
    if not getattr(model, "is_loaded_in_4bit", False):
        return model.merge_and_unload()
    from peft import PeftModel

    base = model.unload().to("cpu")  # whole weights may not fit where the rounded ones did
    dequantize(base)
    return PeftModel.from_pretrained(base, str(adapter)).merge_and_unload()
