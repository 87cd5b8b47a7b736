"""Contrastive alignment for vision-language training: which text tokens look at the image?

The names below are loaded on first use, so that `import cal_cli` is fast. The model classes of this package are
registered with the Auto classes of `transformers` as soon as the process imports it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from wrapt import when_imported

if TYPE_CHECKING:
    from cal_cli.objective import (
        ContrastiveAlignmentLoss,
        CrossEntropyLoss,
        PriorLoss,
        accept_objective,
        contrast_logits,
        token_weights,
    )
    from cal_cli.training.trainer import CALMixin, CALTrainer

__all__ = [
    "CALMixin",
    "CALTrainer",
    "ContrastiveAlignmentLoss",
    "CrossEntropyLoss",
    "PriorLoss",
    "accept_objective",
    "contrast_logits",
    "token_weights",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cal_cli' has no attribute {name!r}")
    trainers = name in ("CALMixin", "CALTrainer")
    return getattr(import_module("cal_cli.training.trainer" if trainers else "cal_cli.objective"), name)


@when_imported("transformers")
def _register_models(transformers: Any) -> None:
    import_module("cal_cli.models.mgm.model")
