"""Objectives under what wraps a model: DDP, FSDP and autocast act on a model's own forward, and on nothing else."""

import functools
from collections.abc import Mapping
from typing import Any, TypeVar

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
        return objective(routed, batch)

    routed.forward = forward
    return model
