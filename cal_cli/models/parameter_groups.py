"""The parts of a vision-language model and their learning rates; in stage 1 of LLaVA only the projector is trained."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from cal_cli.runtime.errors import InputError

PARTS = ("language_model", "projector", "image_newline", "vision_tower")


def group_parameters(model: Any) -> dict[str, list[nn.Parameter]]:
    """Group a model's parameters by part; each belongs to one.

    The language model is the decoder with its embeddings and head, the vision tower is the image encoder, with MGM's
    second one, and `image_newline` is LLaVA-NeXT's embedding between rows of tiles; all other parameters belong to the
    projector.
    """
    vision = model.get_encoder(modality="image")
    second = getattr(model.base_model, "aux_vision_tower", None)
    head = model.get_output_embeddings()
    owners = {
        "vision_tower": [
            *(vision.parameters() if vision is not model else ()),
            *(second.parameters() if second is not None else ()),
        ],
        "language_model": [
            *model.get_decoder().parameters(),
            *model.get_input_embeddings().parameters(),
            *(head.parameters() if head is not None else ()),
        ],
    }
    owners["image_newline"] = [p for name, p in model.named_parameters() if name.endswith("image_newline")]
    part = {id(parameter): name for name, parameters in owners.items() for parameter in parameters}
    found: dict[str, list[nn.Parameter]] = {name: [] for name in PARTS}
    for parameter in model.parameters():
        found[part.get(id(parameter), "projector")].append(parameter)
    return found


def freeze_parts(model: Any, rates: Mapping[str, float]) -> None:
    """Freeze the parts whose rate is 0, and unfreeze the others.

    Args:
        model: an image-text-to-text model.
        rates: by part, its learning rate as a multiple of the run's.

    Raises:
        InputError: an unknown part, a negative rate, or nothing left to train.
    """
    unknown = sorted(set(rates) - set(PARTS))
    if unknown:
        raise InputError(f"parts.{unknown[0]}: there is no such part; parts are {', '.join(PARTS)}")
    for name, rate in rates.items():
        if rate < 0:
            raise InputError(f"parts.{name}={rate}: must be at least 0, where 0 freezes the part")
    for name, parameters in group_parameters(model).items():
        for parameter in parameters:
            parameter.requires_grad_(rates.get(name, 1.0) > 0)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        given = ", ".join(f"parts.{name}={rate}" for name, rate in rates.items())
        raise InputError(f"{given}: nothing is left to train; give a part of the model a rate above 0")


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
