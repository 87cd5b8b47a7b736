"""Objectives under what wraps a model: DDP, FSDP and autocast act on a model's own forward, and on nothing else."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

Model = TypeVar("Model")


def accept_objective(model: Model) -> Model:
    """Let `model(objective=..., batch=...)` compute an objective within the model's own forward.

    Both passes and the loss then are one call of the model, so that DDP counts one forward a step and FSDP has its
    weights at hand. Wrap the model afterwards: `DistributedDataParallel(accept_objective(model))`,
    `fully_shard(accept_objective(model))`, `accelerator.prepare(accept_objective(model))`. Any other call stays the
    model's own.

    Args:
        model: a `transformers` model, or one with PEFT's adapters; it is changed and returned.
    """
    routed: Any = model
    plain_forward = routed.forward

    @functools.wraps(plain_forward)  # `generate` reads the signature to know what the model takes
    def forward(*args: Any, objective: Any = None, batch: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        if objective is None:
            return plain_forward(*args, **kwargs)
        if not sharded(routed):
            output = objective(routed, batch)
            if torch.is_grad_enabled() and not output.loss.requires_grad:
                output.loss = output.loss + no_gradient(routed)
            return output
        zero = no_gradient(routed)
        hook = routed.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output + zero)
        try:
            return objective(routed, batch)
        finally:
            hook.remove()

    routed.forward = forward
    return model


def sharded(model: object) -> bool:
    """Whether torch's FSDP2 has divided the model."""
    return isinstance(model, FSDPModule)


def no_gradient(model: Any) -> Tensor | float:
    """Zero, to which each parameter outside the language model contributes that learns and is gathered now.

    A batch of text alone reaches neither vision tower nor projector: where they alone learn, its loss has no gradient.
    FSDP waits for all processes wherever one goes back through a layer or has a gradient to give, so there each batch
    begins with this zero.
    """
    language = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    known = {id(parameter) for part in language for parameter in part.parameters()}
    return sum(
        0.0 * parameter.sum()
        for parameter in model.parameters()
        if parameter.requires_grad and id(parameter) not in known and not isinstance(parameter, DTensor)
    )
