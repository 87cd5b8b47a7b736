"""The trainer of `cal train`: `CALTrainer` with a rate for each part, batches grouped by modality and length, and
checkpoints from which any launch goes on.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from cal_cli.data.conversations import Conversations
from cal_cli.models.assemble import PROJECTOR, load_projector, projector_of
from cal_cli.objective.contrast import unwrapped
from cal_cli.training.bad_samples import BadSamples
from cal_cli.training.grouping import ModalityLengthSampler, length_of
from cal_cli.training.parts import only_projector, set_rates
from cal_cli.training.trainer import CALTrainer

# the optimizer's state by the parameters' names, not sharded: the same from and for any launch
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class RunTrainer(CALTrainer):
    """Train a model's parts at rates of their own; where the projector alone learns, it alone is saved.

    Args:
        rates: by part, its learning rate as a multiple of `args.learning_rate`; see `train_parts`.
        entries: the samples, to group batches by their modality and length; None means plain shuffling.
        bad_samples: counts what batches name as `bad`.
        **kwargs: as `CALTrainer` takes them.
    """

    def __init__(
        self,
        *,
        rates: Mapping[str, float],
        entries: Conversations | None = None,
        bad_samples: BadSamples,
        **kwargs: Any,
    ) -> None:
        self.rates, self.entries, self.bad_samples = rates, entries, bad_samples
        super().__init__(**kwargs)

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp and self.args.use_cpu:
            # accelerate leaves processes on a CPU out of FSDP, for no need of FSDP's own: there it can be tried out
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def compute_loss(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        self.bad_samples.add(inputs.pop("bad", ()))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if new:
            set_rates(optimizer, unwrapped(self.accelerator.unwrap_model(self.model)), self.rates)
        return optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        if self.entries is None:
            return super()._get_train_sampler(*args, **kwargs)
        entries = self.entries.entries
        return ModalityLengthSampler(
            [length_of(entry) for entry in entries],
            ["image" in entry for entry in entries],
            self.args.per_device_train_batch_size * self.args.world_size,
            self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not only_projector(self.rates):
            super().save_model(output_dir, _internal_call)
            return
        weights = self.whole_projector()
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_projector(weights, folder)

    def whole_projector(self) -> dict[str, Tensor]:
        """The projector's weights, gathered where they are sharded: all processes must ask together."""
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in projector_of(self.accelerator.unwrap_model(self.model)).items()
        }

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        model, optimizer, scheduler = self._learners()
        state = get_optimizer_state_dict(model, optimizer, options=WHOLE)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            model, optimizer, scheduler = self._learners()
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            # not strict: what no loss has reached yet has no state in one process, and zeros where it is sharded
            set_optimizer_state_dict(model, optimizer, state, options=replace(WHOLE, strict=False))
            scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _learners(self) -> tuple[Any, Any, Any]:
        """Model, optimizer (without what accelerate puts around it) and scheduler, once training has begun."""
        optimizer: Any = self.optimizer
        return self.model, optimizer.optimizer, self.lr_scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if only_projector(self.rates):
            load_projector(self.model if model is None else model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def save_projector(weights: dict[str, Tensor], folder: Path) -> None:
    """Write the projector's weights into an existing folder."""
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / PROJECTOR)
