"""Contrastive alignment for vision-language training: which text tokens look at the image?

The names below load what they need when they are first used, so that `import cal_cli` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cal_cli.objective import ContrastiveAlignmentLoss, contrast_logits, token_weights
    from cal_cli.training.trainer import CALTrainer

__all__ = ["CALTrainer", "ContrastiveAlignmentLoss", "contrast_logits", "token_weights"]


def __getattr__(name: str) -> Any:
    if name == "CALTrainer":
        return import_module("cal_cli.training.trainer").CALTrainer
    if name in __all__:
        return getattr(import_module("cal_cli.objective"), name)
    raise AttributeError(f"module 'cal_cli' has no attribute {name!r}")
