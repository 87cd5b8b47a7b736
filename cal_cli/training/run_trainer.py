"""The trainer of `cal train`: learning rates by part, grouped batches, and checkpoints that any launch can resume."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor
from torch.utils.data import Sampler
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from cal_cli.data.sample import Conversations, Entry, get_image_names
from cal_cli.models.llava import get_projector, load_projector, save_projector
from cal_cli.models.parts import set_rates, trains_only_projector
from cal_cli.objective.passes import unwrap_adapters
from cal_cli.runtime.files import read_json, write_json
from cal_cli.runtime.runs import LEARNT
from cal_cli.training.callbacks import BadSamples
from cal_cli.training.trainer import CALTrainer

# the optimizer's state by parameter names, not sharded: the same for every launch
UNSHARDED = StateDictOptions(full_state_dict=True, cpu_offload=True)


class RunTrainer(CALTrainer):
    """Train each part of a model at its own rate; if only the projector is trained, only the projector is saved.

    `rates` are the parts' learning rates as multiples of `args.learning_rate`, see `freeze_parts`. With
    `group_batches`, batches are grouped by the modality and length of the samples of `train_dataset`. `score` takes the
    model and returns what `evaluate` logs.
    """

    train_dataset: Conversations

    def __init__(
        self,
        *,
        rates: Mapping[str, float],
        bad_samples: BadSamples,
        group_batches: bool = False,
        score: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        self.rates, self.bad_samples, self.group_batches, self.score = rates, bad_samples, group_batches, score
        super().__init__(**kwargs)

    @property
    def step_samples(self) -> int:
        """Number of samples of an optimizer step, on all devices."""
        return self.args.per_device_train_batch_size * self.args.world_size * self.args.gradient_accumulation_steps

    def create_accelerator_and_postprocess(self) -> None:
        if self.args.fsdp and self.args.use_cpu:
            # accelerate does not offer FSDP to processes on a CPU, although FSDP itself supports them
            PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        super().create_accelerator_and_postprocess()

    def compute_loss(self, model: nn.Module, inputs: dict, *args: Any, **kwargs: Any) -> Any:
        self.bad_samples.add(inputs.pop("bad", ()))
        return super().compute_loss(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Score the model in training, and log the scores and the seconds that this took."""
        assert self.score is not None  # evaluation is on only with it
        start = time.perf_counter()
        scores = {
            f"eval_{name}": value for name, value in self.score(self.accelerator.unwrap_model(self.model)).items()
        }
        self.log(scores | {"eval_seconds": time.perf_counter() - start})
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if new:
            set_rates(optimizer, unwrap_adapters(self.accelerator.unwrap_model(self.model)), self.rates)
        return optimizer

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Sampler | None:
        if not self.group_batches:
            return super()._get_train_sampler(*args, **kwargs)
        entries = self.train_dataset.entries
        return ModalityLengthSampler(
            [estimate_length(entry) for entry in entries],
            ["image" in entry for entry in entries],
            self.step_samples,
            self.args.seed,
            epoch=lambda: int(self.state.epoch or 0),
        )

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not trains_only_projector(self.rates):
            super().save_model(output_dir, _internal_call)
            return
        weights = self.gather_projector()
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            folder.mkdir(parents=True, exist_ok=True)
            save_projector(weights, folder)

    def gather_projector(self) -> dict[str, Tensor]:
        """Return the projector's weights, gathered if they are sharded; all processes must call this together."""
        return {
            name: value.full_tensor() if isinstance(value, DTensor) else value
            for name, value in get_projector(self.accelerator.unwrap_model(self.model)).items()
        }

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        model, optimizer, scheduler = self._get_trained()
        state = get_optimizer_state_dict(model, optimizer, options=UNSHARDED)
        if self.args.should_save:
            torch.save(state, Path(output_dir) / OPTIMIZER_NAME)
            torch.save(scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)
            write_json(Path(output_dir) / LEARNT, self.objective.state, indent=None)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            model, optimizer, scheduler = self._get_trained()
            state = torch.load(Path(checkpoint) / OPTIMIZER_NAME, map_location="cpu", weights_only=True)
            # not strict: a parameter without any gradient yet has no state in one process, and zeros where sharded
            set_optimizer_state_dict(model, optimizer, state, options=replace(UNSHARDED, strict=False))
            scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))
            self.objective.restore(read_json(Path(checkpoint) / LEARNT, {}))

    def _get_trained(self) -> tuple[Any, Any, Any]:
        """Return model, optimizer (without accelerate's wrapper) and scheduler, after training has begun."""
        optimizer: Any = self.optimizer
        return self.model, optimizer.optimizer, self.lr_scheduler

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if trains_only_projector(self.rates):
            load_projector(self.model if model is None else model, resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)


IMAGE_WORDS = 128  # length of an image in words, as in LLaVA
CHUNK = 32  # batches that are sorted together


def estimate_length(entry: Entry) -> int:
    """Estimate the length of a sample: the words of its turns, and `IMAGE_WORDS` for each image."""
    words = sum(len(turn["value"].split()) for turn in entry["conversations"])
    return words + IMAGE_WORDS * len(get_image_names(entry))


class ModalityLengthSampler(Sampler[int]):
    """An order of samples in which the samples of a batch share one modality and have similar lengths.

    Samples are shuffled, those with an image apart from those without; `CHUNK` batches at a time are sorted by length,
    and the batches are shuffled. Only the last batch of each modality may be mixed with another.

    `batch_size` is the number of samples of one step on all devices; `epoch` returns the number of the epoch that
    begins, from 0, and each has another order. Lengths may be in any unit.

    Source: `group_by_modality_length` of LLaVA's trainer, written anew.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        has_image: Sequence[bool],
        batch_size: int,
        seed: int,
        epoch: Callable[[], int] = lambda: 0,
    ) -> None:
        self.lengths, self.has_image = lengths, has_image
        self.batch_size, self.seed, self.epoch = batch_size, seed, epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch())
        full: list[list[int]] = []
        rest: list[int] = []
        for modality in (True, False):
            members = [index for index, image in enumerate(self.has_image) if image == modality]
            order = [members[place] for place in torch.randperm(len(members), generator=generator).tolist()]
            for start in range(0, len(order), CHUNK * self.batch_size):
                chunk = sorted(order[start : start + CHUNK * self.batch_size], key=lambda index: self.lengths[index])
                batches = [chunk[at : at + self.batch_size] for at in range(0, len(chunk), self.batch_size)]
                if len(batches[-1]) < self.batch_size:
                    rest += batches.pop()
                full += batches
        for place in torch.randperm(len(full), generator=generator).tolist():
            yield from full[place]
        yield from rest
