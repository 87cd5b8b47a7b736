"""`transformers.Trainer`, or a trainer built on it, with an objective of this package as its loss."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from transformers import PreTrainedModel, Trainer

from cal_cli.objective import ContrastiveAlignmentLoss, LossOutput, NonFiniteLoss, RuleLoss, accept_objective

if TYPE_CHECKING:
    Base = Trainer  # the trainer that the mixin precedes
else:
    Base = object


class CALMixin(Base):
    """Give a trainer an objective of this package: `class CALSFTTrainer(CALMixin, trl.SFTTrainer): ...`.

    The objective runs inside the model's own `forward`, so autocast, DDP and FSDP see its two passes as one call.
    The loss of an optimizer step is that of all its samples as one batch, however they are divided among processes and
    accumulated micro-batches (unless `normalization="device_batch"`; under DeepSpeed, which keeps the gradients to
    itself, the losses of micro-batches are averaged). In addition to the trainer's values, each log has `weight_mean`,
    and if the objective contrasts also `delta_mean`, over the supervised tokens of all processes since the previous
    log; of CAL also `share_at_alpha` and `share_at_beta` (the shares of these tokens whose delta is at or beyond a
    bound); and what the objective estimates, such as `rho` of `MismatchPosterior`.

    Args:
        objective: the loss; None means CAL with the paper's settings, see `ContrastiveAlignmentLoss`.
        *args, **kwargs: those of the trainer. A batch may contain `id`, a list with the names of its samples for error
            messages.

    Raises NonFiniteLoss from `train()`, before the step changes any weight.
    """

    objective: RuleLoss

    def __init__(self, *args: Any, objective: RuleLoss | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.objective = objective or ContrastiveAlignmentLoss()
        # the Trainer must divide the loss by the number of accumulated batches
        self.model_accepts_loss_kwargs = False
        self._sums: dict[str, Tensor] = {}
        self._step_loss: Tensor | float = 0.0  # of the micro-batches of this optimizer step, each times its denominator
        self._step_denominator: Tensor | float = 0.0
        self._step_measured: Tensor | float = 0.0  # see `RuleLoss.learn`
        accept_objective(self.model)
        reference = getattr(self.objective, "reference", None)
        if reference is not None:
            reference.to(self.args.device).requires_grad_(False).eval()

    def compute_loss(
        self, model: nn.Module, inputs: dict, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        samples = inputs.pop("id", [])
        try:
            output: LossOutput = model(objective=self.objective, batch=inputs)
        except NonFiniteLoss as error:
            error.step, error.samples = self.state.global_step, [samples[row] for row in error.rows if samples]
            raise
        loss = output.loss
        if model.training:
            self._count(output)
            if output.measured is not None:
                self._step_measured += output.measured
            if self._divides_steps():
                loss = loss * output.denominator
                self._step_denominator += output.denominator
        return (loss, {"loss": loss}) if return_outputs else loss

    def _divides_steps(self) -> bool:
        """Return whether the samples of an optimizer step are computed in several micro-batches."""
        parts = self.args.world_size * self.args.gradient_accumulation_steps
        return parts > 1 and not self.is_deepspeed_enabled

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        """Add the gradients of a micro-batch; after the last of an optimizer step, normalise those of the step."""
        loss = super().training_step(model, *args, **kwargs)
        if self.accelerator.sync_gradients and isinstance(self._step_measured, Tensor):
            self.objective.learn(self.accelerator.reduce(self._step_measured, "sum"))
            self._step_measured = 0.0
        if not self._divides_steps():
            return loss
        self._step_loss += loss
        if not self.accelerator.sync_gradients:
            return torch.zeros_like(loss)  # the Trainer adds up what this returns
        # the gradients are now those of sum(loss * denominator), averaged over micro-batches and processes
        total = self.accelerator.reduce(torch.as_tensor(self._step_denominator), "sum").item()
        factor = self.current_gradient_accumulation_steps * self.args.world_size / total
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
        loss = self._step_loss * factor
        self._step_loss = self._step_denominator = 0.0
        return loss

    def _count(self, output: LossOutput) -> None:
        """Add a batch's weights and deltas to the running sums, on the device, without synchronising with it."""
        values = {"tokens": torch.ones_like(output.weights), "weight_mean": output.weights}
        if output.delta is not None:
            values |= {"delta_mean": output.delta, **self.objective.describe(output.delta)}
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + value.detach().sum()

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums:
            names = sorted(self._sums)
            sums = self.accelerator.reduce(torch.stack([self._sums[name].float() for name in names]), "sum").tolist()
            totals = dict(zip(names, sums, strict=True))
            tokens = totals.pop("tokens")
            logs |= {name: value / tokens for name, value in totals.items()}
            self._sums = {}
            logs |= self.objective.estimates
        super().log(logs, *args, **kwargs)


class CALTrainer(CALMixin, Trainer):
    """A `Trainer` whose loss is an objective of this package; all else is unchanged. See `CALMixin`.

    Under FSDP2 it shards the model itself, see `shard`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.accelerator.is_fsdp2:
            shard(self.model, self.accelerator.state.fsdp_plugin)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint's weights into the model, as `from_pretrained` does.

        `save_pretrained` writes LLaVA's weights under the names of the hub's format. The Trainer's own method looks
        for the current names, finds none and, because it is not strict, leaves the weights unchanged.
        """
        model = self.model if model is None else model
        if self.is_deepspeed_enabled or not isinstance(model, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        kind: Any = next(kind for kind in type(model).__mro__ if not issubclass(kind, FSDPModule))
        saved = kind.from_pretrained(resume_from_checkpoint, dtype=model.dtype)
        set_model_state_dict(model, saved.state_dict(), options=StateDictOptions(full_state_dict=True))


def shard(model: Any, plugin: FullyShardedDataParallelPlugin) -> None:
    """Shard a model's parameters over the processes, in place.

    Each decoder layer is gathered by itself. The rest (vision tower, projector, embeddings, final norm, head) is
    gathered for the whole step, so that a process whose batch shows no image also has the vision tower, and an
    objective can call the head several times. accelerate's own policy puts norm and head into one group, which FSDP2
    frees after the first call; accelerate leaves a model that is already sharded as it is.

    Args:
        model: an image-text-to-text model.
        plugin: accelerate's settings: when to gather, offloading, and the dtypes to compute in.
    """
    offload: Any = plugin.cpu_offload
    if isinstance(offload, CPUOffloadPolicy) and not torch.cuda.is_available():  # pinned memory is for a device
        offload = CPUOffloadPolicy(pin_memory=False)
    options = {"offload_policy": offload, "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy()}
    for layer in find_decoder_layers(model):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, **options)


def find_decoder_layers(model: Any) -> list[nn.Module]:
    """Return the layers of the decoder, each of which `shard` gathers by itself."""
    decoder = model.get_decoder()
    return [module for module in decoder.modules() if type(module).__name__ in decoder._no_split_modules]
