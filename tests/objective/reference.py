"""Scores without the image that know nothing of this package, from the library's models alone."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tests.objective.families import IMAGE, VIDEO


def masked_out(mask: Any, columns: Tensor) -> Any:
    """A mask of any form with some columns hidden from every query."""
    if isinstance(mask, dict):
        return {name: masked_out(part, columns) for name, part in mask.items()}
    if mask is None:
        length = columns.shape[1]
        mask = torch.ones(len(columns), 1, length, length, dtype=torch.bool).tril()
    if mask.dim() == 2:
        return mask * ~columns
    return mask.masked_fill(columns[:, None, None], False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def find_stack(model: Any) -> Any:
    """The innermost module that has the decoder's layers."""
    decoder = model.get_decoder()
    stack = decoder.model if hasattr(decoder, "lm_head") else decoder
    return getattr(stack, "decoder", stack)


def compute_hidden_logits(model: Any, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Logits [batch, length, vocabulary] of the whole model, and with the image's columns hidden from every query."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    columns = torch.isin(batch["input_ids"], torch.tensor([IMAGE, VIDEO]))
    stack = find_stack(model)
    positions = find_positions(model, batch)

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        kwargs = {**kwargs, "attention_mask": masked_out(kwargs.get("attention_mask"), columns)}
        if kwargs.get("position_ids") is None:
            kwargs["position_ids"] = positions
        return args, kwargs

    with torch.no_grad():
        with_image = model(**inputs, use_cache=False).logits
        hook = stack.register_forward_pre_hook(hide, with_kwargs=True)
        try:
            return with_image, model(**inputs, use_cache=False).logits
        finally:
            hook.remove()


def find_positions(model: Any, batch: Mapping[str, Any]) -> Tensor:
    """The position ids that the decoder has in the pass with the image."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    given: dict[str, Any] = {}
    stack = find_stack(model)
    hook = stack.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs, use_cache=False)
    hook.remove()
    if given.get("position_ids") is not None:
        return given["position_ids"]
    rows, length = batch["input_ids"].shape
    if "OPT" in type(stack).__name__:  # it counts the columns that are attended to
        return batch["attention_mask"].cumsum(1) * batch["attention_mask"] - 1
    return torch.arange(length)[None].expand(rows, -1)


def compute_text_logits(model: Any, batch: Mapping[str, Any], drop: Callable[[Tensor], Tensor] | None = None) -> Tensor:
    """Logits [batch, length, vocabulary] of the library's forward on each row's text alone, its position ids kept.

    They stand at the columns of the batch; those of the image are nan.
    """
    positions = find_positions(model, batch)
    ids = batch["input_ids"]
    text = batch["attention_mask"].bool()
    if model.config.model_type != "mllama":  # whose image is read by cross-attention, in no column
        text &= ~torch.isin(ids, torch.tensor([IMAGE, VIDEO]))
    result: Tensor | None = None
    for row in range(len(ids)):
        columns = text[row].nonzero()[:, 0]
        kept = positions.expand(*positions.shape[:-2], len(ids), -1)[..., row : row + 1, columns]
        inputs = {"input_ids": ids[row : row + 1, columns], "attention_mask": torch.ones(1, len(columns)).long()}
        if "mm_token_type_ids" in batch:
            inputs["mm_token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        with torch.no_grad():
            logits = model(**inputs, position_ids=kept, use_cache=False).logits
        if result is None:
            result = torch.full((*ids.shape, logits.shape[-1]), torch.nan)
        result[row, columns] = logits[0].float()
    assert result is not None
    return result
