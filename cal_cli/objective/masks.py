"""Attention masks for the pass without the image's columns, equal to full-length masks that hide these columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

# layers that read other columns only through the mask; recurrent and convolutional layers have none
ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


def make_masks(
    decoder: Any,
    given: Mapping[str, Any],
    attended: Tensor,
    text: Tensor,
    kept: Tensor,
    samples: Tensor,
    order: Tensor,
) -> Any:
    """Make the mask, or masks, of some columns of a batch.

    A decoder that builds its own masks from a [batch, length] mask does so again from that of the kept columns. This
    does not work for decoders that receive finished masks from the model (PaliGemma's prefix and Gemma's images attend
    in both directions), nor for sliding windows, which count columns. For these, the columns are cut out of the
    full-length masks.

    `given` are the decoder's keyword arguments in the pass with the image. Of the samples in `samples` (int64
    [samples]), `text` (bool [samples, length]) are the columns that others may attend to, `kept` these and the columns
    that are only queries, and `order` (int64 [samples, columns]) the kept columns first, then a row's padding.

    Raises ValueError for masks of an unknown kind, layers that are not attention, or kernels without such masks.
    """
    config = decoder.config
    if "flash" in config._attn_implementation and (kept & ~text).any():
        raise ValueError(
            "a supervised token directly follows its image, which flash attention does not support without the image "
            "(it drops masked columns as queries too): use attn_implementation='sdpa'"
        )
    others = set(getattr(config, "layer_types", None) or ()) - set(ATTENTION_LAYERS)
    if others:
        raise ValueError(
            f"{type(decoder).__name__} has {', '.join(sorted(others))} layers: these carry state along the columns, "
            "so masking the image and dropping it differ; this is not supported"
        )
    seen = text.gather(1, order)  # [samples, columns]
    masks = given.get("attention_mask")
    length = attended.shape[1]
    if (masks is None or isinstance(masks, Tensor)) and (masks is None or masks.dim() == 2):
        reach = min(getattr(config, name, None) or length for name in ("sliding_window", "attention_chunk_size"))
        if reach >= length:
            return seen.long()
        masks = _make_full_length(decoder, given, attended)
    if isinstance(masks, dict):
        return {name: _cut(mask, text, samples, order) for name, mask in masks.items()}
    return _cut(masks, text, samples, order)


def _make_full_length(decoder: Any, given: Mapping[str, Any], attended: Tensor) -> Any:
    """Make the masks that a decoder with sliding windows builds itself, bool or float, in the form that it takes."""
    config = decoder.config
    types = set(getattr(config, "layer_types", None) or ["sliding_attention"])
    makers = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
    if "flash" in config._attn_implementation or not types <= set(makers):
        raise ValueError(
            f"{type(decoder).__name__} attends in windows narrower than these {attended.shape[1]} columns, with "
            f"{config._attn_implementation} attention, which counts columns: use attn_implementation='sdpa'"
        )
    masks = {
        name: makers[name](
            config=config,
            inputs_embeds=given["inputs_embeds"],
            attention_mask=attended.long(),
            past_key_values=None,
            position_ids=given.get("position_ids"),
        )
        for name in types
    }
    return masks if getattr(config, "layer_types", None) else masks["sliding_attention"]


def _cut(mask: Tensor | None, text: Tensor, samples: Tensor, order: Tensor) -> Tensor:
    """Cut [samples, 1, columns, columns] out of a full-length mask (None: causal); only text can be attended to."""
    if mask is None:
        length = text.shape[1]
        mask = torch.ones(1, 1, length, length, dtype=torch.bool, device=text.device).tril()
    if not isinstance(mask, Tensor) or mask.dim() != 4:
        raise ValueError(
            f"attention masks of kind {type(mask).__name__} cannot be cut: use attn_implementation='sdpa' or 'eager'"
        )
    mask = mask.expand(int(samples.max()) + 1 if mask.shape[0] == 1 else mask.shape[0], -1, -1, -1)[samples]
    heads, columns = mask.shape[1], order.shape[1]
    by_query = mask.gather(2, order[:, None, :, None].expand(-1, heads, -1, mask.shape[3]))
    cut = by_query.gather(3, order[:, None, None, :].expand(-1, heads, columns, -1))
    hidden = ~text.gather(1, order)[:, None, None, :]
    return cut.masked_fill(hidden, False if cut.dtype == torch.bool else torch.finfo(cut.dtype).min)
