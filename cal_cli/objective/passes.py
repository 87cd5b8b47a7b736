"""The decoder with the image, and again on the text alone."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor
from torch.utils._pytree import tree_any
from transformers.masking_utils import LAYER_PATTERN_TO_MASK_FUNCTION_MAPPING as MASK_FUNCTIONS

from cal_cli.objective.head import LanguageHead, UnknownHead, check_head, find_decoder, find_head, make_logits_head

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
    refusal: str | None = None  # why there is no pass without the image; `hidden` then holds logits
    hidden_without_image: Tensor | None = None  # of the positions with an image, once they have been computed


def run_with_image(model: PreTrainedModel, batch: Mapping[str, Any], reach: int = 0) -> ForwardPass:
    """Run the model without its language head, and record what its decoder is given.

    A model whose logits are not those of a language head on its decoder's states is run whole, and its logits take the
    place of the states. There is no pass without the image for it.

    Args:
        model: an image-text-to-text model of `transformers`.
        batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and whatever else
            the model takes.
        reach: number of neighbours, on each side in the flattened batch, to include with each supervised position.

    Raises ValueError if no label is supervised, there are pixel values but no image token, the model has an encoder for
    its text, or a loss of its own for its experts.
    """
    positions = find_positions(model, batch, reach)
    model = unwrap_adapters(model)
    inputs = select_model_inputs(model, batch)
    check_loss(model.config)
    rows, columns = positions.rows, positions.columns
    try:
        outputs, given = run_below_head(model, inputs)
        head = find_head(model, inputs, outputs)
    except UnknownHead as error:
        logits = getattr(type(model).forward(model, **inputs, use_cache=False), "logits", None)
        before = 0 if logits is None else logits.shape[1] - batch["input_ids"].shape[1]
        if logits is None or before < 0:
            raise
        logits = logits[:, before:]  # GIT has its image's columns before those of the text
        return ForwardPass(model, make_logits_head(logits), batch, positions, logits[rows, columns], {}, str(error))
    given = {name: value.detach() if isinstance(value, Tensor) else value for name, value in given.items()}
    return ForwardPass(model, head, batch, positions, outputs.last_hidden_state[rows, columns], given)


def run_below_head(model: PreTrainedModel, inputs: Mapping[str, Any], **options: Any) -> tuple[Any, dict[str, Any]]:
    """Run a model without its language head.

    Returns the outputs, with `last_hidden_state`, float [batch, length, hidden], and the decoder's keyword arguments.

    Raises UnknownHead if the model has no language head or no decoder below it.
    """
    check_head(model)
    decoder = find_decoder(model)
    if decoder is None:
        raise UnknownHead(f"{type(model).__name__} has no decoder that can run alone below its language head")
    given: dict[str, Any] = {}
    states: list[Any] = []
    hooks = [
        decoder.register_forward_pre_hook(lambda module, args, kwargs: given.update(kwargs), with_kwargs=True),
        decoder.register_forward_hook(lambda module, args, outputs: states.append(outputs)),
    ]
    try:
        if model.base_model is not model:
            outputs = model.base_model(**inputs, **options, use_cache=False)
        else:
            # of the logits, only the last position's are computed; wrappers already hold, see `accept_objective`
            type(model).forward(model, **inputs, **options, use_cache=False, logits_to_keep=1)
            outputs = states[-1]
    finally:
        for hook in hooks:
            hook.remove()
    if outputs.last_hidden_state.shape[:2] != inputs["input_ids"].shape:
        raise UnknownHead(f"the columns of the decoder of {type(model).__name__} are not those of its tokens")
    return outputs, given


def check_loss(config: Any) -> None:
    """Raise ValueError if the loss of a model with this config is not the cross-entropy of its labels alone."""
    text = config.get_text_config()
    if config.is_encoder_decoder or text.is_encoder_decoder:
        raise ValueError(
            f"{config.model_type} models have an encoder for their text: give one whose decoder reads image and text"
        )
    if getattr(text, "output_router_logits", False):
        raise ValueError(
            f"{config.model_type} models with output_router_logits=true add a loss for their experts, which these "
            "objectives leave out: give output_router_logits=false in config.json"
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
    tokens = get_image_tokens(model.config)
    if tokens:
        has_image = find_image_columns(model, batch["input_ids"]).any(dim=1)
    else:  # which rows is not known
        has_image = torch.full_like(batch["input_ids"][:, 0], batch.get("pixel_values") is not None).bool()
    if batch.get("pixel_values") is not None and tokens and not has_image.any():
        raise ValueError(
            f"the batch has pixel_values but no image token (id {tokens[0]}) in input_ids: put the image's placeholder "
            "into the text, through the model's own processor"
        )
    return Positions(rows, columns, labels[chosen].clamp_min(0), has_image[rows], supervised[chosen])


def find_image_columns(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Return which columns hold image features: bool [batch, length].

    Raises ValueError if the config names no image token.
    """
    check_image_tokens(model.config)
    return torch.isin(input_ids, input_ids.new_tensor(get_image_tokens(model.config)))


def get_image_tokens(config: Any) -> list[int]:
    """Return the ids of the tokens whose columns hold features of images or videos."""
    return [value for name in IMAGE_TOKENS if (value := getattr(config, name, None)) is not None]


def check_image_tokens(config: Any) -> None:
    """Raise ValueError if a config names no image token."""
    if not get_image_tokens(config):
        raise ValueError(
            f"{config.model_type} models name no image_token_id, so it is not known which columns hold the image: "
            "objectives that contrast do not support them"
        )


def score_labels(head: LanguageHead, hidden: Tensor, labels: Tensor, score: str) -> Tensor:
    """Compute logits or log-probabilities of labels, float32 [positions], from hidden states [positions, hidden]."""
    return head.label_logprobs(hidden, labels) if score == "logprob" else head.label_logits(hidden, labels)


def unwrap_adapters(model: Any) -> Any:
    """Return the `transformers` model inside PEFT's wrapper; LoRA's layers are part of it."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def select_model_inputs(model: Any, batch: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of a batch that the model takes, numbers in its dtype (Llama 4's pixels are in bfloat16)."""
    inputs = {name: value for name, value in batch.items() if name not in NOT_INPUTS}
    numbers = {name: value for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    return inputs | {name: value.to(model.dtype) for name, value in numbers.items()}


# what decoders take from the image beside its columns: for cross-attention (Mllama), and for lower layers (Qwen3-VL and
# Granite), where a mask marks the columns whose features follow; Chameleon's decoder takes the image itself
CROSS_ATTENTION = ("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask")
LOWER_LAYERS = {"visual_pos_masks": "deepstack_visual_embeds", "vision_mask": "deepstack_features"}
PER_CALL = ("attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position")  # made again
LEFT_OUT = (*CROSS_ATTENTION, *LOWER_LAYERS, *LOWER_LAYERS.values(), *PER_CALL, "pixel_values")


def run_without_image(forward: ForwardPass) -> Tensor:
    """Run the decoder on the text of the samples that show an image.

    Samples without an image are not run again. If a supervised token is predicted from the image's last column (a
    caption right after its image), that column stays in the pass as a query that no other column attends to, as under
    the mask of the paper's released code. Decoders with recurrent layers run as on a text without an image, with the
    position ids of the pass with it.

    Returns hidden states, [positions with an image, hidden].

    Raises ValueError if the decoder is given something of the image that this pass does not know, or has layers from
    which an image cannot be removed.
    """
    if forward.refusal is not None:
        raise ValueError(forward.refusal)
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

    decoder = find_decoder(forward.model)
    check_layers(decoder.config)
    inputs = {name: _take(name, value, samples, order, batch) for name, value in given.items() if name not in LEFT_OUT}
    for mask, features in LOWER_LAYERS.items():
        if given.get(mask) is not None and (kept & ~text).any():
            inputs |= _take_lower_features(mask, features, given, kept, samples, order)
    position_ids = get_position_ids(decoder, given, attended)[..., samples, :]
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
    if isinstance(value, Tensor) and value.shape[:2] == batch["input_ids"].shape:
        return value[samples[:, None], order]
    if tree_any(lambda part: isinstance(part, Tensor), value):
        kind = list(value.shape) if isinstance(value, Tensor) else f"(a {type(value).__name__})"
        raise ValueError(f"the decoder takes {name} {kind}, which the pass without the image does not know how to cut")
    return value


def _take_lower_features(
    mask: str, features: str, given: Mapping[str, Any], kept: Tensor, samples: Tensor, order: Tensor
) -> dict[str, Any]:
    """Take the features that lower layers add to the image's columns, of those columns that are kept as queries."""
    columns = given[mask].reshape(given[mask].shape[0], -1).bool()
    number = columns.flatten().cumsum(dim=0).view_as(columns) - 1  # of each column's features
    left = columns[samples] & kept
    rows = number[samples][left]
    by_layer, left = given[features], left.gather(1, order).reshape(*order.shape, *given[mask].shape[2:])
    if isinstance(by_layer, Mapping):
        return {mask: left, features: {layer: values[rows] for layer, values in by_layer.items()}}
    return {mask: left, features: [values[rows] for values in by_layer]}


def get_position_ids(decoder: Any, given: Mapping[str, Any], attended: Tensor) -> Tensor:
    """Return the decoder's position ids, int64 [..., batch, length]: those it was given, else those it counts itself.

    Decoders count all columns from 0; OPT counts those that are attended to (`attended`, bool [batch, length]). In
    decoders without positions, recurrent layers keep the order, and the ids have no effect.

    Raises ValueError if it is not known how the decoder counts.
    """
    rows, length = attended.shape
    position_ids = given.get("position_ids")
    if position_ids is None:
        position_ids = torch.arange(length, device=attended.device)[None]
        learnt = getattr(decoder, "embed_positions", None)
        if learnt is not None and "attention_mask" in inspect.signature(learnt.forward).parameters:
            position_ids = attended.long().cumsum(dim=1) * attended - 1
        elif not (has_recurrent_layers(decoder.config) or any("rotary" in name for name, _ in decoder.named_modules())):
            raise ValueError(
                f"{type(decoder).__name__} computes its positions from its inputs, so they would change without the "
                "image's columns; put position_ids into the batch"
            )
    return position_ids.expand(*position_ids.shape[:-2], rows, -1)


WINDOWS = ("sliding_attention", "chunked_attention")
# layers that read other columns only through the mask; the reference of UnlimitedOCR's windows is the whole prompt
ATTENTION_LAYERS = (*WINDOWS, "full_attention", "indexed_attention", "reference_sliding_attention")
RECURRENT_LAYERS = ("linear_attention", "conv", "mamba")  # these carry a state along the columns
OTHER_LAYERS = ("mlp", "moe")  # these read one column


def has_recurrent_layers(config: Any) -> bool:
    """Return whether a decoder with this config has layers that carry a state along the columns."""
    return not set(RECURRENT_LAYERS).isdisjoint(getattr(config, "layer_types", None) or ())


def check_layers(config: Any) -> None:
    """Raise ValueError if it is not known how to remove the image from a decoder's layers, by its config."""
    known = {*ATTENTION_LAYERS, *RECURRENT_LAYERS, *OTHER_LAYERS}
    others = set(getattr(config, "layer_types", None) or ()) - known
    if others:
        raise ValueError(
            f"{config.model_type} decoders have {', '.join(sorted(others))} layers, from which it is not known how to "
            "remove the image: objectives that contrast do not support them"
        )


def make_masks(
    decoder: Any, given: Mapping[str, Any], attended: Tensor, text: Tensor, kept: Tensor, samples: Tensor, order: Tensor
) -> Any:
    """Make the mask, or masks, of some columns of a batch.

    A decoder that builds its own masks from a [batch, length] mask does so again from that of the kept columns. This
    does not work for decoders that receive finished masks from the model (PaliGemma's prefix and Gemma's images attend
    in both directions), nor for windows and chunks, which count columns. For these, the columns are cut out of the
    full-length masks. Decoders with recurrent layers read the kept columns as a text of its own.

    `given` are the decoder's keyword arguments in the pass with the image. Of the samples in `samples` (int64
    [samples]), `text` (bool [samples, length]) are the columns that others may attend to, `kept` these and the columns
    that are only queries, and `order` (int64 [samples, columns]) the kept columns first, then a row's padding.

    Raises ValueError for masks or layers of an unknown kind, kernels without such masks, more columns than an indexer
    selects, or an image's column that is needed as a query in recurrent layers.
    """
    config = decoder.config
    types, recurrent = set(getattr(config, "layer_types", None) or ()), has_recurrent_layers(config)
    reasons = {
        "recurrent layers would carry that column on": recurrent,
        "its decoder is given no features for that column": given.get("inputs_embeds") is None,
        "flash attention drops that column; use attn_implementation='sdpa'": "flash" in config._attn_implementation,
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    if reason is not None and (kept & ~text).any():  # in this order: on a GPU the second waits for the device
        raise ValueError(
            "a supervised token directly follows its image, whose last column would predict it: put a token between "
            f"them ({reason})"
        )
    seen = text.gather(1, order)  # [samples, columns]
    masks = given.get("attention_mask")
    length = attended.shape[1]
    if masks is None or (isinstance(masks, Tensor) and masks.dim() == 2):
        if "indexed_attention" in types and not recurrent and length > config.index_topk:
            raise ValueError(
                f"{type(decoder).__name__} selects {config.index_topk} of these {length} columns, and the image's "
                "columns take part in the selection: shorten the samples, such as with data.max_length"
            )
        if recurrent or (types and types.isdisjoint(WINDOWS)):
            return seen.long()
        # a key that a config's class lacks is no window
        known = {field.name for field in dataclasses.fields(config)} & {"sliding_window", "attention_chunk_size"}
        if all((getattr(config, name) or length) >= length for name in known):
            return seen.long()
        masks = _make_full_length(decoder, given, attended)
    if isinstance(masks, dict):
        return {name: _cut(mask, text, samples, order) for name, mask in masks.items()}
    return _cut(masks, text, samples, order)


def _make_full_length(decoder: Any, given: Mapping[str, Any], attended: Tensor) -> Any:
    """Make the masks that a decoder with sliding windows builds itself, bool or float, in the form that it takes."""
    config = decoder.config
    types = set(getattr(config, "layer_types", None) or ["sliding_attention"]) - set(OTHER_LAYERS)
    if "flash" in config._attn_implementation:
        raise ValueError(
            f"{type(decoder).__name__} attends in windows narrower than these {attended.shape[1]} columns, with "
            f"{config._attn_implementation} attention, which counts columns: use attn_implementation='sdpa'"
        )
    makers: Mapping[str, Any] = MASK_FUNCTIONS
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
