"""The contrast pass: each label token's logit with the image and without it (Algorithm 1, steps 1 and 2).

The pass with the image is the model's own. For the pass without it, the decoder's inputs are taken from the first
pass, the image's columns are dropped, and the decoder alone runs again without gradient; the text keeps its
position ids. Dropping a column and masking it out of attention are the same computation for a decoder whose
positions are explicit, but dropping costs nothing, and 576 of 776 tokens of a LLaVA-1.5 sample are dropped.
Both passes meet the vocabulary only where a label is supervised, and for raw logits only at the label's own row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # the label of an unsupervised position, as everywhere in torch and transformers
SCORES = ("logit", "logprob")


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
class DecoderInputs:
    """What the decoder was given in the pass with the image: image features stand among the text embeddings."""

    inputs_embeds: Tensor  # [batch, length, hidden]
    position_ids: Tensor | None  # int64 [..., batch, length]; None: counted from 0


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
        ValueError: an unknown score, no supervised token, or a model without image token or language head.
    """
    if score not in SCORES:
        raise ValueError(f"score={score}: allowed are {' and '.join(SCORES)}")
    with torch.no_grad():
        positions = scored_positions(model, batch)
        hidden, decoder_inputs = forward_with_image(model, batch)
        hidden = hidden[positions.rows, positions.columns]
        with_image = label_scores(model, hidden, positions.labels, score)
        without_image = scores_without_image(model, batch, decoder_inputs, positions, with_image, score)
    return Contrast(
        with_image, without_image, positions.labels, positions.rows, positions.columns + 1, positions.has_image
    )


def scored_positions(model: PreTrainedModel, batch: Mapping[str, Any], reach: int = 0) -> Positions:
    """Find the positions that predict a supervised label, and those up to `reach` away in the flattened batch.

    Raises:
        ValueError: no label is supervised.
    """
    labels = batch["labels"][:, 1:]
    supervised = labels != IGNORED
    if not supervised.any():
        raise ValueError("no supervised token in the batch: every label is -100 (or stands first, with nothing before)")
    chosen = supervised
    if reach:
        flat = supervised.flatten()[None, None].float()
        chosen = F.max_pool1d(flat, 2 * reach + 1, stride=1, padding=reach).bool().view_as(supervised)
    rows, columns = chosen.nonzero(as_tuple=True)
    has_image = (batch["input_ids"] == image_token_id(model)).any(dim=1)
    return Positions(rows, columns, labels[chosen].clamp_min(0), has_image[rows], supervised[chosen])


def forward_with_image(model: PreTrainedModel, batch: Mapping[str, Any]) -> tuple[Tensor, DecoderInputs]:
    """Run the model below its language head and keep what its decoder was given.

    Returns:
        Last hidden states [batch, length, hidden], with gradient where enabled, and the decoder's inputs, detached.
    """
    seen: dict[str, Any] = {}
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    try:
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        hidden = model.base_model(**inputs, use_cache=False).last_hidden_state
    finally:
        hook.remove()
    return hidden, DecoderInputs(seen["inputs_embeds"].detach(), seen.get("position_ids"))


def scores_without_image(
    model: PreTrainedModel,
    batch: Mapping[str, Any],
    decoder_inputs: DecoderInputs,
    positions: Positions,
    with_image: Tensor,
    score: str,
) -> Tensor:
    """Score the labels once more with nothing of the image to attend to.

    Samples without an image are not run again: their scores are those `with_image`. Where an answer's first token
    is predicted from the image's last column (a caption right after the image), that column stays in the pass as a
    query that nothing attends to, as under the released code's mask.

    Returns:
        float32 [positions].
    """
    scores = with_image.clone()
    samples, row = positions.rows[positions.has_image].unique(return_inverse=True)
    if not len(samples):
        return scores
    column = positions.columns[positions.has_image]

    input_ids = batch["input_ids"][samples]
    text = input_ids != image_token_id(model)
    if batch.get("attention_mask") is not None:
        text &= batch["attention_mask"][samples].bool()
    kept = text.clone()
    kept[row, column] = True
    order = kept.int().argsort(dim=1, descending=True, stable=True)[:, : kept.sum(dim=1).max()]  # kept columns first

    position_ids = decoder_inputs.position_ids
    if position_ids is None:
        position_ids = torch.arange(kept.shape[1], device=kept.device)[None]
    position_ids = position_ids.expand(*position_ids.shape[:-2], len(batch["input_ids"]), -1)[..., samples, :]
    embeds = decoder_inputs.inputs_embeds[samples[:, None], order]
    outputs = model.get_decoder()(
        inputs_embeds=embeds,
        attention_mask=text.gather(1, order).long(),
        position_ids=position_ids.take_along_dim(order, dim=-1),
        use_cache=False,
    )
    hidden = outputs.last_hidden_state[row, kept.cumsum(dim=1)[row, column] - 1]
    scores[positions.has_image] = label_scores(model, hidden, positions.labels[positions.has_image], score)
    return scores


def label_scores(model: PreTrainedModel, hidden: Tensor, labels: Tensor, score: str) -> Tensor:
    """The raw logit or the log-probability of each label, float32 [positions], from hidden states [positions, hidden].

    A raw logit is one dot product with the label's row of the language head, taken in float32: in bf16 the
    difference of two large logits would lose most of its digits.
    """
    head = language_head(model)
    if score == "logprob":
        return -F.cross_entropy(head(hidden).float(), labels, reduction="none")
    logits = (hidden.float() * head.weight[labels].float()).sum(dim=-1)
    return logits if head.bias is None else logits + head.bias[labels].float()


def language_head(model: PreTrainedModel) -> nn.Linear:
    """The linear layer from hidden states to logits.

    Raises:
        ValueError: the model has none, or changes its logits after it.
    """
    head = model.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(model).__name__} has no language head: an image-text-to-text model is needed")
    if getattr(model.config.get_text_config(), "final_logit_softcapping", None):
        raise ValueError(f"{type(model).__name__} caps its logits after the language head, which is not supported")
    return head


def image_token_id(model: PreTrainedModel) -> int:
    """The id that marks the image's columns in `input_ids`.

    Raises:
        ValueError: the model's config names none.
    """
    token_id = getattr(model.config, "image_token_id", None)
    if token_id is None:
        raise ValueError(f"{type(model).__name__} names no image_token_id: its image columns cannot be told from text")
    return token_id
