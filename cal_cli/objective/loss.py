"""The loss: cross-entropy of the supervised tokens, each weighted (Algorithm 1, step 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from cal_cli.objective.forward import ForwardPass, run_with_image
from cal_cli.objective.normalization import NORMALIZATIONS, compute_shares

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class NonFiniteLoss(FloatingPointError):
    """A loss was nan or infinite.

    Attributes:
        loss: its value.
        rows: rows of the batch in which a token's cross-entropy or weight is not finite.
        step: in a trainer, the optimizer steps completed before it.
        samples: in a trainer, the ids of the samples in these rows; empty if the collator returns none.
    """

    step: int | None = None
    samples: Sequence[str] = ()

    def __init__(self, loss: float, rows: list[int]) -> None:
        super().__init__(
            f"the loss is {loss}, from row {', '.join(map(str, rows))} of the batch: look at these samples' pixel "
            "values, at the learning rate and at the model's weights"
        )
        self.loss, self.rows = loss, rows


@dataclass
class LossOutput(ModelOutput):
    """The result of one call of a loss; the vectors are float32 [supervised tokens], in reading order.

    It extends an output of `transformers`, so that wrappers of a model (DDP, FSDP) find the tensors in it.
    """

    loss: Tensor = None  # type: ignore[assignment]  # scalar, differentiable
    cross_entropy: Tensor = None  # type: ignore[assignment]  # without gradient
    weights: Tensor = None  # type: ignore[assignment]
    delta: Tensor | None = None  # None if the weights do not depend on it
    denominator: Tensor = None  # type: ignore[assignment]  # scalar: what the loss is divided by, see `WeightedLoss`
    measured: Tensor | None = None  # float32 [any], see `WeightedLoss.learn`


class Weighing(NamedTuple):
    """What a loss finds out about the tokens of a batch before it computes their cross-entropy."""

    weights: Tensor  # float32 [positions]
    delta: Tensor | None = None  # float32 [positions]; None if the weights do not depend on it
    measured: Tensor | None = None  # what an objective that estimates something learns from, see `WeightedLoss.learn`


class WeightedLoss:
    """Cross-entropy of the supervised tokens, each weighted by a rule: `out = loss(model, batch)`.

    A subclass defines `weigh`, and `normalization`: one of

    - `batch`: divide by the sum of the weights of the whole batch;
    - `tokens`: divide by the number of supervised tokens of the whole batch, so that small weights make a small loss;
    - `sample`: divide each sample by the sum of its own weights and average over samples, as the paper's equation does;
    - `length`: divide each sample by the sum of its own weights and average over tokens, as PRIOR does;
    - `device_batch`: as `batch`, but a batch that is divided among devices or accumulated is the mean of its parts'
      losses, as in the paper's released code.

    The loss of a batch that is computed in parts is sum(loss * denominator) / sum(denominator) over the parts'
    outputs: their `denominator` is the sum of the weights, the number of tokens, of samples, of tokens, and 1, in this
    order.
    """

    normalization: str
    reach = 0  # number of neighbours, on each side of a supervised token, whose weights are needed

    def weigh(self, forward: ForwardPass) -> Weighing:
        """Compute the weights, without gradient."""
        raise NotImplementedError

    @property
    def state(self) -> dict[str, Any]:
        """What the objective has learnt from the data, as JSON; empty for most."""
        return {}

    @property
    def estimates(self) -> dict[str, float]:
        """The numbers to log of what it has learnt."""
        return {}

    def learn(self, measured: Tensor) -> None:
        """Learn from an optimizer step; `measured` is the sum over the outputs of its micro-batches."""

    def restore(self, state: dict[str, Any]) -> None:
        """Set what has been learnt, such as that of a checkpoint."""

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        """Return shares of tokens to log: from names to bool [tokens]; `delta` is float32 [tokens]."""
        return {}

    def __call__(self, model: PreTrainedModel, batch: Mapping[str, Any]) -> LossOutput:
        """Compute the loss of a batch.

        Args:
            model: an image-text-to-text model of `transformers`, unwrapped, or one with PEFT's adapters.
            batch: `input_ids`, `labels` (int64 [batch, length], -100 where unsupervised, shifted inside) and whatever
                else the model takes: `attention_mask`, `pixel_values`, ...; for `contrast="cached"` also
                `scores_without_image` (float32 [batch, length], at the labels' positions).

        Raises:
            ValueError: no supervised token, pixel values without an image token, or a model that is not supported
                (the message says why).
            NonFiniteLoss: before any gradient is computed.
        """
        forward = run_with_image(model, batch, self.reach)
        output = self.compute(forward)
        if not torch.isfinite(output.loss):
            wrong = ~torch.isfinite(output.cross_entropy) | ~torch.isfinite(output.weights)
            rows = forward.positions.rows[forward.positions.supervised]
            raise NonFiniteLoss(output.loss.item(), rows[wrong].unique().tolist())
        return output

    def compute(self, forward: ForwardPass) -> LossOutput:
        """Compute the loss from the pass with the image: all weights first, then the cross-entropy."""
        supervised = forward.positions.supervised
        with torch.no_grad():
            weights, delta, measured = self.weigh(forward)
            weights, rows = weights[supervised], forward.positions.rows[supervised]
            coefficients, denominator = compute_shares(weights, rows, self.normalization)
        loss, cross_entropy = forward.head.weighted_cross_entropy(
            forward.hidden[supervised], forward.positions.labels[supervised], coefficients
        )
        delta = None if delta is None else delta[supervised]
        return LossOutput(loss, cross_entropy, weights, delta, denominator, measured)


@dataclass(frozen=True)
class CrossEntropyLoss(WeightedLoss):
    """Plain cross-entropy (CE): every supervised token has weight 1, and nothing is contrasted.

    Args:
        normalization: see `WeightedLoss`.

    Raises:
        ValueError: an unknown normalization.
    """

    normalization: str = "batch"

    def __post_init__(self) -> None:
        check_choices(self, normalization=NORMALIZATIONS)

    def weigh(self, forward: ForwardPass) -> Weighing:
        return Weighing(torch.ones_like(forward.positions.labels, dtype=torch.float32))


def check_choices(options: Any, **allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless each named option is one of the allowed values."""
    for name, choices in allowed.items():
        if getattr(options, name) not in choices:
            raise ValueError(
                f"{name}={getattr(options, name)}: allowed are {', '.join(choices[:-1])} and {choices[-1]}"
            )
