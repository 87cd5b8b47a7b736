"""Find a model's language head, and verify it against the model's own logits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from cal_cli.objective.head import LanguageHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE = 40.0  # largest logit when a head is verified: far outside the linear range of a soft cap of 30

_FINISHES: WeakKeyDictionary[nn.Module, tuple[float, float | None]] = WeakKeyDictionary()


def find_head(model: PreTrainedModel, inputs: Mapping[str, Any], outputs: Any) -> LanguageHead:
    """Find a model's head with its scale and soft cap, and verify it once against the model's own logits.

    Raises ValueError if the model's logits are not those of its head, scaled and capped.
    """
    module = model.get_output_embeddings()
    if model not in _FINISHES:
        with torch.no_grad():
            own, bare = _compute_logits(model, module, inputs, outputs)
        finite = torch.isfinite(own) & torch.isfinite(bare)
        for scale, softcap in _read_scales(model.config.get_text_config()):
            expected = LanguageHead(module, scale, softcap).finish(bare)
            if not finite.any():  # broken weights or pixels: the loss will report it
                return LanguageHead(module, scale, softcap)
            if torch.allclose(own[finite], expected[finite], atol=2e-2 * PROBE * min(scale, 1.0), rtol=1e-4):
                _FINISHES[model] = scale, softcap
                break
        else:
            raise ValueError(
                f"{type(model).__name__} changes its logits after the language head in a way that is not supported"
            )
    return LanguageHead(module, *_FINISHES[model])


def _read_scales(config: Any) -> Iterator[tuple[float, float | None]]:
    """Yield what a config says about the logits, then no change: some families ignore their text config."""
    scales = [1.0]
    for name in ("logit_scale", "logits_scaling"):
        if value := getattr(config, name, None):
            scales = [value, 1 / value, *scales]
    softcap = getattr(config, "final_logit_softcapping", None)
    for scale in scales:
        yield from ((scale, softcap), (scale, None)) if softcap else ((scale, None),)


def _compute_logits(model: Any, module: nn.Module, inputs: Mapping[str, Any], outputs: Any) -> tuple[Tensor, Tensor]:
    """Return the model's logits and its head's, float32 [batch, vocabulary], for an enlarged last hidden state."""
    hidden = outputs.last_hidden_state
    bare = module(hidden[:, -1:])
    factor = PROBE / bare.abs().nan_to_num().max().clamp_min(1e-6)
    enlarged = type(outputs)(**{**outputs, "last_hidden_state": hidden * factor})
    base, own = model.base_model, model.base_model.__dict__.get("forward")
    base.forward = lambda *args, **kwargs: enlarged
    try:
        logits = type(model).forward(model, **inputs, logits_to_keep=1, use_cache=False).logits
    finally:
        if own is None:
            del base.forward
        else:
            base.forward = own
    return logits[:, -1].float(), module(enlarged.last_hidden_state[:, -1:])[:, -1].float()
