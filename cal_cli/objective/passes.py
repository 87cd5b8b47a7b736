"""The decoder with the image, and again on the text alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from cal_cli.objective.head import LanguageHead, find_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # the label of an unsupervised position, as in torch and transformers
CACHED_SCORES = "scores_without_image"  # the key of a batch that `contrast="cached"` reads
IMAGE_TOKENS = ("image_token_id", "video_token_id")  # keys of a config: tokens whose columns hold features
GIVEN_WEIGHTS = "loss_weights"  # the key of a batch with weights that come with the data, see `GivenWeights`
# keys of a batch that are not for the model
NOT_INPUTS = ("labels", CACHED_SCORES, GIVEN_WEIGHTS, "id", "place", "text", "offsets", "answer")


@dataclass
class Positions:
    """The positions of a batch whose next token is scored; the hidden state at [row, column] predicts the label.

    All fields are [positions], in reading order. `labels` is 0 where the position is unsupervised.
    """

    rows: Tensor  # int64
    columns: Tensor  # int64
    labels: Tensor  # int64
    has_image: Tensor  # bool, whether the row's sample shows an image
    supervised: Tensor  # bool


@dataclass
class ForwardPass:
    """The result of the pass with the image."""

    model: PreTrainedModel  # without the wrapper of PEFT
    head: LanguageHead
    batch: Mapping[str, Any]
    positions: Positions
    hidden: Tensor  # [positions, hidden], last hidden states, with gradient where enabled
    decoder_inputs: dict[str, Any]  # keyword arguments of the decoder; its embeddings include the image features
    hidden_without_image: Tensor | None = None  # of the positions with an image, once they have been computed


def run_with_image(model: PreTrainedModel, batch: Mapping[str, Any], reach: int = 0) -> ForwardPass:
    """Run the model without its language head, and record what its decoder is given.

    Args:
        model: an image-text-to-text model of `transformers`.
        batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and whatever else
            the model takes.
        reach: number of neighbours, on each side in the flattened batch, to include with each supervised position.

    Raises:
        ValueError: no label is supervised, there are pixel values but no image token, or the model has no language
            head or no decoder that can run by itself.
    """
    positions = find_positions(model, batch, reach)
    model = unwrap_adapters(model)
    inputs = select_model_inputs(batch)
    decoder = model.get_decoder()
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no language head: give an image-text-to-text model with one")
    if model.base_model is model or decoder is None or model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} has no decoder that can run alone below its language head")
    given: dict[str, Any] = {}
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True)
    try:
        outputs = model.base_model(**inputs, use_cache=False)
    finally:
        hook.remove()
    return ForwardPass(
        model=model,
        head=find_head(model, inputs, outputs),
        batch=batch,
        positions=positions,
        hidden=outputs.last_hidden_state[positions.rows, positions.columns],
        decoder_inputs={name: value.detach() if isinstance(value, Tensor) else value for name, value in given.items()},
    )


def find_positions(model: PreTrainedModel, batch: Mapping[str, Any], reach: int = 0) -> Positions:
    """Find the positions that predict a supervised label, and those up to `reach` away in the flattened batch.

    Raises ValueError if there are none, or no image token for pixel values.
    """
    labels = batch["labels"][:, 1:]
    supervised = chosen = labels != IGNORED
    if reach:
        flat = supervised.flatten()[None, None].float()
        chosen = F.max_pool1d(flat, 2 * reach + 1, stride=1, padding=reach).bool().view_as(supervised)
    rows, columns = chosen.nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError(
            "no supervised token in the batch: every label is -100, or stands first with nothing before it"
        )
    has_image = find_image_columns(model, batch["input_ids"]).any(dim=1)
    if batch.get("pixel_values") is not None and not has_image.any():
        raise ValueError(
            f"the batch has pixel_values but no image token (id {model.config.image_token_id}) in input_ids: put the "
            "image's placeholder into the text, through the model's own processor"
        )
    return Positions(rows, columns, labels[chosen].clamp_min(0), has_image[rows], supervised[chosen])


def find_image_columns(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Return which columns hold image features: bool [batch, length].

    Raises ValueError if the config names no image token.
    """
    ids = [getattr(model.config, name, None) for name in IMAGE_TOKENS]
    if ids[0] is None:
        raise ValueError(f"{type(model).__name__} names no image_token_id: image columns cannot be told from text")
    return torch.isin(input_ids, torch.tensor([i for i in ids if i is not None], device=input_ids.device))


def score_labels(head: LanguageHead, hidden: Tensor, labels: Tensor, score: str) -> Tensor:
    """Compute logits or log-probabilities of labels, float32 [positions], from hidden states [positions, hidden]."""
    return head.label_logprobs(hidden, labels) if score == "logprob" else head.label_logits(hidden, labels)


def unwrap_adapters(model: Any) -> Any:
    """Return the `transformers` model inside PEFT's wrapper; LoRA's layers are part of it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def select_model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a batch that the model itself takes."""
    return {name: value for name, value in batch.items() if name not in NOT_INPUTS}


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


# layers that read other columns only through the mask; recurrent and convolutional layers have none
ATTENTION_LAYERS = ("full_attention", "sliding_attention", "chunked_attention")


def check_layers(config: Any) -> None:
    """Raise ValueError if a decoder with this config cannot run without the image, because its layers carry state."""
    others = set(getattr(config, "layer_types", None) or ()) - set(ATTENTION_LAYERS)
    if others:
        raise ValueError(
            f"a {config.model_type} decoder has {', '.join(sorted(others))} layers: these carry state along the "
            "columns, so masking the image and dropping it differ; objectives that contrast do not support this"
        )


def make_masks(
    decoder: Any, given: Mapping[str, Any], attended: Tensor, text: Tensor, kept: Tensor, samples: Tensor, order: Tensor
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
    check_layers(config)
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
