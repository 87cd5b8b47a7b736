"""The trainer of `cal train`: `CALTrainer` with a rate for each part, and batches grouped by modality and length."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import Sampler

from cal_cli.data.conversations import Conversations
from cal_cli.models.assemble import PROJECTOR, load_projector, projector_of
from cal_cli.objective.contrast import unwrapped
from cal_cli.training.bad_samples import BadSamples
from cal_cli.training.grouping import ModalityLengthSampler, length_of
from cal_cli.training.parts import only_projector, set_rates
from cal_cli.training.trainer import CALTrainer


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

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        if not only_projector(self.rates):
            super()._save(output_dir, state_dict)
            return
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_projector(self.accelerator.unwrap_model(self.model), folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if only_projector(self.rates):
            load_projector(self.model if model is None else model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


def save_projector(model: Any, folder: Path) -> None:
    """Write the projector's weights into an existing folder."""
    save_file({name: value.contiguous() for name, value in projector_of(model).items()}, folder / PROJECTOR)
