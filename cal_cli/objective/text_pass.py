"""The pass without the image: the decoder runs again on the text alone, without gradient.

Its inputs are those of the pass with the image, without the image's columns; the text keeps its position ids. Dropping
a column and masking it out of attention are the same computation for a decoder with explicit positions and masks, but
dropping is cheaper: 576 of the 776 tokens of a LLaVA-1.5 sample are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from cal_cli.objective.forward import ForwardPass, find_image_columns
from cal_cli.objective.masks import make_masks

# what decoders take from the image beside its columns: for cross-attention (Mllama) and for lower layers (Qwen3-VL)
CROSS_ATTENTION = ("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask")
FEATURES_BESIDE = ("visual_pos_masks", "deepstack_visual_embeds")
PER_CALL = ("attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position")  # made again
LEFT_OUT = (*CROSS_ATTENTION, *FEATURES_BESIDE, *PER_CALL)


def run_without_image(forward: ForwardPass) -> Tensor:
    """Run the decoder on the text of the samples that show an image.

    Samples without an image are not run again. If a supervised token is predicted from the image's last column (a
    caption right after its image), that column stays in the pass as a query that no other column attends to, as under
    the mask of the paper's released code.

    Returns:
        Hidden states, [positions with an image, hidden].

    Raises ValueError if the decoder is given something of the image that this pass does not know.
    """
    batch, positions, given = forward.batch, forward.positions, forward.decoder_inputs
    samples, row = positions.rows[positions.has_image].unique(return_inverse=True)
    column = positions.columns[positions.has_image]
    if not len(samples):
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return forward.hidden.new_empty(0, forward.hidden.shape[-1])
        # where weights are sharded, each process must call the layers as often as the others
        samples, row, column = positions.rows[:1], positions.rows[:0], positions.columns[:0]

    attended = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if batch.get("attention_mask") is not None:
        attended = batch["attention_mask"].bool()
    kept = attended
    if all(given.get(name) is None for name in CROSS_ATTENTION):  # otherwise no column holds features
        kept = attended & ~find_image_columns(forward.model, batch["input_ids"])
    text = kept = kept[samples]
    if len(row):
        kept = text.clone()
        kept[row, column] = True
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : kept.sum(dim=1).max()]  # kept columns first

    decoder = forward.model.get_decoder()
    inputs = {name: _take(name, value, samples, order, batch) for name, value in given.items() if name not in LEFT_OUT}
    position_ids = get_position_ids(decoder, given, batch)[..., samples, :]
    with torch.no_grad():
        outputs = decoder(
            **inputs,
            attention_mask=make_masks(decoder, given, attended, text, kept, samples, order),
            position_ids=position_ids.gather(-1, order.expand(*position_ids.shape[:-1], -1)),
            use_cache=False,
        )
    return outputs.last_hidden_state[row, kept.cumsum(dim=1)[row, column] - 1]


def _take(name: str, value: Any, samples: Tensor, order: Tensor, batch: Mapping[str, Any]) -> Any:
    """Take some samples' columns of a decoder input, in the given order; what has no columns stays as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.shape[:2] != batch["input_ids"].shape:
        raise ValueError(
            f"the decoder takes {name} {list(value.shape)}, which the pass without the image does not know how to cut"
        )
    return value[samples[:, None], order]


def get_position_ids(decoder: Any, given: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
    """Return the decoder's position ids, int64 [..., batch, length]: those it was given, else counted from 0.

    Raises ValueError if the decoder computes its positions itself, from inputs that would differ without the image.
    """
    rows, length = batch["input_ids"].shape
    position_ids = given.get("position_ids")
    if position_ids is None:
        if not any("rotary" in name for name, _ in decoder.named_modules()):
            raise ValueError(
                f"{type(decoder).__name__} computes its positions from its inputs, so they would change without the "
                "image's columns; put position_ids into the batch"
            )
        position_ids = torch.arange(length, device=batch["input_ids"].device)[None]
    return position_ids.expand(*position_ids.shape[:-2], rows, -1)
