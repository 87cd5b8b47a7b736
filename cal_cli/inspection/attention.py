"""Figure 5 of the paper: where text looks, by attention and by gradient-weighted relevancy."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cal_cli.objective.forward import find_positions, select_model_inputs

SINK = 20.0  # largest entry of a sink's hidden state, relative to its root mean square


@dataclass
class Attention:
    """How the tokens of one sample attend to each other, from the positions that predict the supervised tokens.

    Attributes:
        position: int64 [tokens], columns of the supervised tokens in `input_ids`.
        weights: float32 [layers, tokens, columns], means over heads: the attention of the position before each token,
            whose prediction it is.
        sinks: bool [layers, columns], see `find_sinks`.
    """

    position: Tensor
    weights: Tensor
    sinks: Tensor

    def select(self, columns: Tensor, remove_sinks: bool) -> Tensor:
        """Return the attention to some columns, float32 [layers, tokens, selected]; that to sinks as 0 if removed."""
        weights = self.weights[:, :, columns]
        return weights.masked_fill(self.sinks[:, None, columns], 0.0) if remove_sinks else weights


def record_attention(model: PreTrainedModel, batch: Mapping[str, Any]) -> Attention:
    """Run a model on a single sample, and record its attention.

    Raises ValueError if the model's class returns no attention of text to all tokens.
    """
    positions = find_positions(model, batch)
    with compute_attention(model), torch.no_grad():
        outputs = run(model, batch, output_hidden_states=True)
    weights = torch.stack([layer[0].float().mean(dim=0)[positions.columns] for layer in outputs.attentions])
    layers = outputs.hidden_states[: len(weights)]  # the inputs of the layers; the last one is the output
    return Attention(positions.columns + 1, weights, torch.stack([find_sinks(layer[0]) for layer in layers]))


def compute_relevancy(model: PreTrainedModel, batch: Mapping[str, Any], tokens: Sequence[int] | None = None) -> Tensor:
    """Compute how relevant each column is for each supervised token of a single sample: float32 [tokens, columns].

    `tokens` are numbers of supervised tokens; None means all. Each takes a backward pass.

    With A_l the attention of layer l and G_l the gradient of the token's logit with respect to it, the mean over heads
    of the positive part of G_l * A_l is propagated from the first layer to the last: R = R + mean_h(G_l * A_l)^+ R,
    from the identity. The result is the row of R of the position that predicts the token, without its own start.

    Source: Chefer, Gur, Wolf, "Generic Attention-model Explainability", ICCV 2021, equations 5 and 6.

    Raises ValueError as `record_attention`.
    """
    positions = find_positions(model, batch)
    rows = []
    with compute_attention(model), torch.enable_grad():
        outputs = run(model, batch)
        chosen = range(len(positions.labels)) if tokens is None else tokens
        for column, label in ((int(positions.columns[token]), int(positions.labels[token])) for token in chosen):
            logit = outputs.logits[0, column, label]
            gradients = torch.autograd.grad(logit, outputs.attentions, retain_graph=True)
            row = torch.zeros(len(batch["input_ids"][0]), device=logit.device)
            row[column] = 1.0
            for weights, gradient in reversed(list(zip(outputs.attentions, gradients, strict=True))):
                row = row + row @ (weights[0] * gradient[0]).detach().float().clamp_min(0).mean(dim=0)
            row[column] -= 1.0
            rows.append(row)
    return torch.stack(rows)


def find_sinks(hidden: Tensor) -> Tensor:
    """Find attention sinks by their hidden states, [columns, hidden] -> bool [columns].

    A sink receives attention from everywhere and says nothing of the picture; a few entries of its hidden state are far
    larger than all others. Here a sink is a column whose largest entry is at least `SINK` times the root mean square.

    Source: Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025, with all
    entries in place of those that they found for each model.
    """
    states = hidden.float()
    return states.abs().amax(dim=-1) >= SINK * states.square().mean(dim=-1).sqrt()


def run(model: PreTrainedModel, batch: Mapping[str, Any], **options: Any) -> Any:
    """Run a model on a batch, with its attention in the output.

    Raises ValueError if the model's class returns none, or none of text to all tokens, as with cross-attention.
    """
    outputs = model(**select_model_inputs(batch), output_attentions=True, use_cache=False, **options)
    length = batch["input_ids"].shape[1]
    layers = outputs.attentions or [None]
    if any(layer is None or layer.shape[-2:] != (length, length) for layer in layers):
        raise ValueError(
            f"{type(model).__name__}: its class returns no attention of text to image tokens, so it cannot be shown"
        )
    return outputs


@contextmanager
def compute_attention(model: PreTrainedModel) -> Iterator[None]:
    """Let a model compute attention step by step, since fused implementations return none."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
