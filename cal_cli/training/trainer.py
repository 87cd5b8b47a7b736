"""`transformers.Trainer` with the contrastive alignment loss."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer

from cal_cli.objective import ContrastiveAlignmentLoss, LossOutput


class NonFiniteLoss(FloatingPointError):
    """The loss of a step was nan or infinite.

    Attributes:
        step: optimizer steps completed before it.
        samples: ids of the samples in the batch; empty if the collator names none.
    """

    def __init__(self, loss: float, step: int, samples: list[str]) -> None:
        super().__init__(f"the loss is {loss} after step {step}")
        self.loss, self.step, self.samples = loss, step, samples


class CALTrainer(Trainer):
    """A `Trainer` whose loss is an objective of this package; everything else is the library's.

    The objective runs inside the model's own `forward`, so that autocast and wrappers around the model see its two
    passes as one call; several processes are not tested yet. Under gradient accumulation the micro-batches' losses
    are averaged. Beside the library's values, each log has `weight_mean`, and where the objective contrasts
    `delta_mean`, `share_at_alpha` and `share_at_beta` (the shares of supervised tokens whose delta is at or beyond a
    bound), over the supervised tokens since the log before.

    Args:
        objective: the loss; None means CAL with the paper's settings, see `ContrastiveAlignmentLoss`.
        *args, **kwargs: as `transformers.Trainer` takes them. A batch may hold `id`, a list of names of its
            samples for error messages.

    Raises:
        NonFiniteLoss: from `train()`, before the weights are touched by it.
    """

    def __init__(self, *args: Any, objective: ContrastiveAlignmentLoss | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective: ContrastiveAlignmentLoss = objective or ContrastiveAlignmentLoss()
        # the loss is a mean over the batch: the Trainer must divide it by the number of accumulated batches
        self.model_accepts_loss_kwargs = False
        self._sums: dict[str, Tensor] = {}
        _route_objective_through_forward(self.model)

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        samples = inputs.pop("id", [])
        output: LossOutput = model(objective=self.objective, batch=inputs)
        if not torch.isfinite(output.loss):
            raise NonFiniteLoss(output.loss.item(), self.state.global_step, list(samples))
        if model.training:
            self._count(output)
        return (output.loss, {"loss": output.loss}) if return_outputs else output.loss

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights into the model, as `from_pretrained` does.

        `save_pretrained` writes LLaVA's weights under the names of the hub's format. The library's own method looks
        for the model's present names, finds none and, not being strict, leaves the weights as they were.
        """
        model = self.model if model is None else model
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())

    def _count(self, output: LossOutput) -> None:
        """Add a batch's weights and deltas to the running sums, on the device, without waiting for it."""
        values = {"tokens": torch.ones_like(output.weights), "weight_mean": output.weights}
        if output.delta is not None:
            values["delta_mean"] = output.delta
            values["share_at_alpha"] = output.delta <= self.objective.alpha
            values["share_at_beta"] = output.delta >= self.objective.beta
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums:
            tokens = self._sums.pop("tokens").item()
            logs |= {name: value.item() / tokens for name, value in self._sums.items()}
            self._sums = {}
        super().log(logs, *args, **kwargs)


def _route_objective_through_forward(model: Any) -> None:
    """Let `model(objective=..., batch=...)` compute the objective; any other call stays the model's own."""
    plain_forward = model.forward

    @functools.wraps(plain_forward)  # `generate` reads the signature to know what the model takes
    def forward(*args: Any, objective: Any = None, batch: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        if objective is None:
            return plain_forward(*args, **kwargs)
        return objective(model, batch)

    model.forward = forward
