"""Four-bit weights under adapters (QLoRA, Dettmers et al. 2023), with bitsandbytes."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from cal_cli.runtime.errors import InputError


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
