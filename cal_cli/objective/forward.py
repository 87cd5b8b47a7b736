"""The pass with the image: the model's own, with its hidden states at the positions whose next token is scored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cal_cli.objective.find_head import find_head
from cal_cli.objective.head import LanguageHead

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IGNORED = -100  # the label of an unsupervised position, as in torch and transformers
CACHED_SCORES = "scores_without_image"  # the key of a batch that `contrast="cached"` reads
IMAGE_TOKENS = ("image_token_id", "video_token_id")  # keys of a config: tokens whose columns hold features
GIVEN_WEIGHTS = "loss_weights"  # the key of a batch with weights that come with the data, see `GivenWeights`


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

    @property
    def turns(self) -> Tensor:
        """int64, the answer that each supervised position belongs to: a run of consecutive supervised columns."""
        begins = (self.columns.diff() != 1) | (self.rows.diff() != 0)
        return F.pad(begins.cumsum(0), (1, 0))


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
    return {name: value for name, value in batch.items() if name not in ("labels", CACHED_SCORES, GIVEN_WEIGHTS)}
