"""Objectives under DDP, FSDP and autocast, which act only on a model's own `forward`."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from cal_cli.objective.head import get_head_module

Model = TypeVar("Model")


def accept_objective(model: Model) -> Model:
    """Let `model(objective=..., batch=...)` compute an objective inside the model's own `forward`.

    Both passes and the loss are then one call of the model, so that DDP counts one forward pass for each step and FSDP
    has the weights gathered. Wrap the model afterwards: `DistributedDataParallel(accept_objective(model))`,
    `fully_shard(accept_objective(model))`, `accelerator.prepare(accept_objective(model))`. Other calls are unchanged.

    Args:
        model: a `transformers` model, or one with PEFT's adapters; it is modified and returned.
    """
    routed: Any = model
    plain_forward = routed.forward

    @functools.wraps(plain_forward)  # `generate` reads the signature to learn what the model takes
    def forward(*args: Any, objective: Any = None, batch: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        if objective is None:
            return plain_forward(*args, **kwargs)
        if not isinstance(model, FSDPModule):
            output = objective(routed, batch)
            if torch.is_grad_enabled() and not output.loss.requires_grad:
                output.loss = output.loss + make_zero_with_gradient(routed)
            return output
        zero = make_zero_with_gradient(routed)
        hook = routed.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + zero)
        try:
            return objective(routed, batch)
        finally:
            hook.remove()

    routed.forward = forward
    return model


def make_zero_with_gradient(model: Any) -> Tensor | float:
    """Return a zero that depends on every gathered, trainable parameter outside the language model.

    A batch of text alone uses neither the vision tower nor the projector; if only these are trained, its loss has no
    gradient. FSDP waits for all processes when one of them runs a layer backward or has a gradient to reduce, so under
    FSDP every batch adds this zero to its embeddings.
    """
    language = (model.get_decoder(), model.get_input_embeddings(), get_head_module(model))
    known = {id(parameter) for part in language for parameter in part.parameters()}
    return sum(
        0.0 * parameter.sum()
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in known and not isinstance(parameter, DTensor)
    )
