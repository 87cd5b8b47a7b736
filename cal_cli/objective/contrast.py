"""The contrast: each label token's score with the image and without it (Algorithm 1, steps 1 and 2).

The pass with the image is the model's own. What stands against it is a choice, see `conditions.py`; the paper's, no
image at all, is `text_states` below. For it the decoder's inputs are taken from the first pass, the image's columns
are dropped, and the decoder alone runs again without gradient; the text keeps its position ids. Dropping a column
and masking it out of attention are the same computation for a decoder whose positions and masks are explicit, but
dropping costs nothing, and 576 of 776 tokens of a LLaVA-1.5 sample are dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.attention import masks_of_columns
from cal_cli.objective.head import LanguageHead, language_head

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # the label of an unsupervised position, as everywhere in torch and transformers
SCORES = ("logit", "logprob")
CACHED_SCORES = "scores_without_image"  # of a batch: what `contrast="cached"` reads
IMAGE_TOKENS = ("image_token_id", "video_token_id")  # of a config: whose columns hold features instead of words
# what decoders take of the image beside its columns: for cross-attention (Mllama) and for lower layers (Qwen3-VL)
CROSS_ATTENTION = ("cross_attention_states", "cross_attention_mask", "full_text_row_masked_out_mask")
FEATURES_BESIDE = ("visual_pos_masks", "deepstack_visual_embeds")
PER_CALL = ("attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position")  # set anew


@dataclass
class Positions:
    """The places of a batch whose next token is scored; hidden state [row, column] predicts `labels`.

    All fields are [positions], in reading order. `labels` is 0 where the position is unsupervised.
    """

    rows: Tensor  # int64
    columns: Tensor  # int64
    labels: Tensor  # int64
    has_image: Tensor  # bool, whether the row's sample shows an image
    supervised: Tensor  # bool


@dataclass
class FirstPass:
    """What the pass with the image gave, and what its decoder was given."""

    model: PreTrainedModel  # without what PEFT wraps around it
    head: LanguageHead
    hidden: Tensor  # [batch, length, hidden], last hidden states, with gradient where enabled
    decoder_inputs: dict[str, Any]  # keyword arguments of the decoder; image features stand among the embeddings


@dataclass
class Contrast:
    """Scores of the supervised label tokens with and without the image; all fields are [supervised tokens]."""

    with_image: Tensor  # float32
    without_image: Tensor  # float32
    labels: Tensor  # int64
    sample_index: Tensor  # int64, row of the batch
    position: Tensor  # int64, column of the label token in `input_ids`
    has_image: Tensor  # bool

    @property
    def delta(self) -> Tensor:
        """float32 [supervised tokens]: with the image minus without; 0 for samples without an image."""
        return self.with_image - self.without_image


def contrast_logits(model: PreTrainedModel, batch: Mapping[str, Any], score: str = "logit") -> Contrast:
    """Score every supervised token of a batch with and without its image, without gradient.

    Args:
        model: an image-text-to-text model of `transformers`.
        batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and what else
            the model takes: `attention_mask`, `pixel_values`, ...
        score: `logit`, the raw logit as in the paper, or `logprob`, the log-probability; the difference of two
            log-probabilities is the pointwise mutual information of token and image, given the text before.

    Raises:
        ValueError: an unknown score, no supervised token, pixel values without an image token, or a model that the
            contrast pass cannot treat right (the message says why).
        FloatingPointError: a score is nan or infinite.
    """
    if score not in SCORES:
        raise ValueError(f"score={score}: allowed are {' and '.join(SCORES)}")
    with torch.no_grad():
        positions = scored_positions(model, batch)
        first = forward_with_image(model, batch)
        with_image = label_scores(first.head, first.hidden[positions.rows, positions.columns], positions.labels, score)
        without_image = with_image.clone()
        states = text_states(first, batch, positions)
        without_image[positions.has_image] = label_scores(
            first.head, states, positions.labels[positions.has_image], score
        )
    contrast = Contrast(
        with_image, without_image, positions.labels, positions.rows, positions.columns + 1, positions.has_image
    )
    if not torch.isfinite(contrast.delta).all():
        rows = contrast.sample_index[~torch.isfinite(contrast.delta)].unique().tolist()
        raise FloatingPointError(
            f"a {score} of the labels is nan or infinite in row {', '.join(map(str, rows))} of the batch: look at "
            "these samples' pixel values and at the model's weights"
        )
    return contrast


def label_scores(head: LanguageHead, hidden: Tensor, labels: Tensor, score: str) -> Tensor:
    """Raw logits or log-probabilities of the labels, float32 [positions], from hidden states [positions, hidden]."""
    return head.label_logprobs(hidden, labels) if score == "logprob" else head.label_logits(hidden, labels)


def scored_positions(model: PreTrainedModel, batch: Mapping[str, Any], reach: int = 0) -> Positions:
    """Find the positions that predict a supervised label, and those up to `reach` away in the flattened batch.

    Raises:
        ValueError: no label is supervised, or there are pixel values and no image token.
    """
    labels = batch["labels"][:, 1:]
    supervised = chosen = labels != IGNORED
    if reach:
        flat = supervised.flatten()[None, None].float()
        chosen = F.max_pool1d(flat, 2 * reach + 1, stride=1, padding=reach).bool().view_as(supervised)
    rows, columns = chosen.nonzero(as_tuple=True)
    if not len(rows):
        raise ValueError("no supervised token in the batch: every label is -100 (or stands first, with nothing before)")
    shown = image_columns(model, batch["input_ids"]).any(dim=1)
    if batch.get("pixel_values") is not None and not shown.any():
        raise ValueError(
            f"the batch has pixel_values but no image token (id {model.config.image_token_id}) in input_ids: put the "
            "image's placeholder into the text, through the model's own processor"
        )
    return Positions(rows, columns, labels[chosen].clamp_min(0), shown[rows], supervised[chosen])


def image_columns(model: PreTrainedModel, input_ids: Tensor) -> Tensor:
    """Which columns stand for an image: bool [batch, length].

    Raises:
        ValueError: the model's config names no image token.
    """
    ids = [getattr(model.config, name, None) for name in IMAGE_TOKENS]
    if ids[0] is None:
        raise ValueError(f"{type(model).__name__} names no image_token_id: its image columns cannot be told from text")
    return torch.isin(input_ids, torch.tensor([i for i in ids if i is not None], device=input_ids.device))


def unwrapped(model: Any) -> Any:
    """The `transformers` model in what PEFT wraps around it; LoRA's layers sit inside."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What of a batch the model below its head takes."""
    return {name: value for name, value in batch.items() if name not in ("labels", CACHED_SCORES)}


def forward_with_image(model: PreTrainedModel, batch: Mapping[str, Any]) -> FirstPass:
    """Run the model below its language head and keep what its decoder was given.

    Raises:
        ValueError: a model without language head, or with a decoder that cannot run alone.
    """
    model = unwrapped(model)
    inputs = model_inputs(batch)
    decoder = model.get_decoder()
    if model.get_output_embeddings() is None:
        raise ValueError(f"{type(model).__name__} has no language head: give an image-text-to-text model with one")
    if model.base_model is model or decoder is None or model.config.is_encoder_decoder:
        raise ValueError(f"{type(model).__name__} has no decoder that can run alone below its language head")
    seen: dict[str, Any] = {}
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        outputs = model.base_model(**inputs, use_cache=False)
    finally:
        hook.remove()
    decoder_inputs = {name: value.detach() if isinstance(value, Tensor) else value for name, value in seen.items()}
    return FirstPass(model, language_head(model, inputs, outputs), outputs.last_hidden_state, decoder_inputs)


def text_states(first: FirstPass, batch: Mapping[str, Any], positions: Positions) -> Tensor:
    """Run the decoder on the text alone, without gradient: hidden states with nothing of the image to attend to.

    Samples without an image are not run again. Where an answer's first token is predicted from the image's last
    column (a caption right after the image), that column stays in the pass as a query that nothing attends to, as
    under the released code's mask.

    Returns:
        [positions with an image, hidden].

    Raises:
        ValueError: the decoder is given something of the image that this pass does not know.
    """
    samples, row = positions.rows[positions.has_image].unique(return_inverse=True)
    column = positions.columns[positions.has_image]
    if not len(samples):
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return first.hidden.new_empty(0, first.hidden.shape[-1])
        # with weights sharded over processes each must call the layers as often as the others
        samples, row, column = positions.rows[:1], positions.rows[:0], positions.columns[:0]

    given = first.decoder_inputs
    attended = torch.ones_like(batch["input_ids"], dtype=torch.bool)
    if batch.get("attention_mask") is not None:
        attended = batch["attention_mask"].bool()
    kept = attended
    if all(given.get(name) is None for name in CROSS_ATTENTION):  # else no column holds features
        kept = attended & ~image_columns(first.model, batch["input_ids"])
    text = kept = kept[samples]
    if len(row):
        kept = text.clone()
        kept[row, column] = True
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : kept.sum(dim=1).max()]  # kept columns first

    decoder = first.model.get_decoder()
    inputs = {name: _columns(name, value, samples, order, batch) for name, value in given.items() if _is_of_text(name)}
    position_ids = decoder_positions(decoder, given, batch)[..., samples, :]
    with torch.no_grad():
        outputs = decoder(
            **inputs,
            attention_mask=masks_of_columns(decoder, given, attended, text, kept, samples, order),
            position_ids=position_ids.gather(-1, order.expand(*position_ids.shape[:-1], -1)),
            use_cache=False,
        )
    return outputs.last_hidden_state[row, kept.cumsum(dim=1)[row, column] - 1]


def _is_of_text(name: str) -> bool:
    return name not in (*CROSS_ATTENTION, *FEATURES_BESIDE, *PER_CALL)


def _columns(name: str, value: Any, samples: Tensor, order: Tensor, batch: Mapping[str, Any]) -> Any:
    """Some samples' columns, in the given order, of what the decoder was given; what has no columns stays as it is."""
    if not isinstance(value, Tensor):
        return value
    if value.shape[:2] != batch["input_ids"].shape:
        raise ValueError(
            f"the decoder takes {name} {list(value.shape)}, of which the pass without the image knows nothing"
        )
    return value[samples[:, None], order]


def decoder_positions(decoder: Any, given: Mapping[str, Any], batch: Mapping[str, Any]) -> Tensor:
    """int64 [..., batch, length]: those that the decoder was given, or else counted from 0, as it does itself."""
    rows, length = batch["input_ids"].shape
    position_ids = given.get("position_ids")
    if position_ids is None:
        if not any("rotary" in name for name, _ in decoder.named_modules()):
            raise ValueError(
                f"{type(decoder).__name__} computes its positions itself, from what it is given: without the image's "
                "columns they would be others; put position_ids into the batch"
            )
        position_ids = torch.arange(length, device=batch["input_ids"].device)[None]
    return position_ids.expand(*position_ids.shape[:-2], rows, -1)
