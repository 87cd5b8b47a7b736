"""A model and its processor, from a folder in the library's own format or from nothing."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel

from cal_cli.errors import InputError
from cal_cli.models.hub import fetched
from cal_cli.models.tiny import tiny_from_scratch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TINY_BASE = Path(__file__).parent.parent / "assets" / "tiny"


def load_model(path: str | None = None, from_scratch: bool = False, seed: int = 0) -> tuple[PreTrainedModel, Any]:
    """Load a model in float32 with its processor.

    Args:
        path: a folder written by `save_pretrained`; None means the tiny base that ships with the package.
        from_scratch: build the tiny model with random weights instead.
        seed: of the random weights.

    Raises:
        InputError: `path` is no folder with a model.
    """
    if from_scratch:
        if path is not None:
            raise InputError("model.path and model.from_scratch=true exclude each other: give one of them")
        return tiny_from_scratch(seed)
    folder = Path(path) if path is not None else TINY_BASE
    if not (folder / "config.json").is_file():
        raise InputError(f"model.path={folder}: no config.json there; give a folder written by save_pretrained")
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return model, AutoProcessor.from_pretrained(folder)


def load_for_answers(path: str, dtype: str | None, device: torch.device) -> tuple[Any, Any]:
    """Load a model to be asked, in evaluation mode, with its processor.

    Args:
        path: a folder written by `save_pretrained`, or a hub id.
        dtype: of the weights; None means float32 on a CPU, and as they were saved on a GPU.
        device: where to.

    Raises:
        InputError: it cannot be loaded, or an unknown dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: allowed are {', '.join(DTYPES)}, or null")
    chosen: Any = DTYPES[dtype] if dtype is not None else torch.float32 if device.type == "cpu" else "auto"
    model = fetched(AutoModelForImageTextToText.from_pretrained, path, "checkpoint", dtype=chosen)
    return model.to(device).eval(), fetched(AutoProcessor.from_pretrained, path, "checkpoint")


def checkpoint_activations(model: Any) -> None:
    """Have a model keep little of its forward pass and compute it again in the backward pass."""
    # the library has renamed it; the older name warns
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def place(model: Any) -> Any:
    """Move a model to the accelerator, where there is one."""
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
