"""What a finished run leaves: its weights in the format of `transformers`, and the contents of `summary.json`."""

import math
import resource
from functools import partial
from pathlib import Path
from typing import Any

import torch

from cal_cli.models.llava import save_projector
from cal_cli.models.lora import merge_adapters
from cal_cli.models.parameter_groups import trains_only_projector
from cal_cli.runtime.files import replace_folder
from cal_cli.runtime.provenance import get_device_name, get_git_commit, get_versions
from cal_cli.training.arguments import TrainConfig
from cal_cli.training.run_trainer import RunTrainer


def save_weights(trainer: RunTrainer, processor: Any, run: Path) -> None:
    """Write `checkpoint/`, or `projector/` if nothing else was trained, completely or not at all.

    Adapters are written to `adapter/` as peft does, and merged in `checkpoint/`. All processes must call this together,
    because shards are gathered; the first one writes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = state = None
    if trains_only_projector(trainer.rates):
        weights = trainer.gather_projector()
    elif trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    if weights is not None:
        replace_folder(run / "projector", partial(save_projector, weights))
        return
    if hasattr(model, "merge_and_unload"):
        replace_folder(run / "adapter", model.save_pretrained)
        model = merge_adapters(model, run / "adapter")
    replace_folder(run / "checkpoint", partial(model.save_pretrained, state_dict=state), processor.save_pretrained)


def summarize(
    settings: TrainConfig, trainer: RunTrainer, status: str, seconds: float, objective: str, command: str
) -> dict[str, Any]:
    """Return the contents of `summary.json`; `seconds` and memory are those of this process."""
    model: Any = trainer.model
    state, parameters = trainer.state, list(model.parameters())
    # a run that is too short for a log has only the mean over its steps, which the Trainer logs at the end
    losses = [entry[name] for name in ("train_loss", "loss") for entry in state.log_history if name in entry]
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "status": status,
        "name": settings.name,
        "objective": objective,
        "noise": {"kind": settings.noise.kind, "ratio": settings.noise.ratio, "seed": settings.noise.seed},
        "seed": settings.seed,
        "steps": state.global_step,
        "final_loss": losses[-1] if losses else None,
        **({"estimates": trainer.objective.estimates} if trainer.objective.estimates else {}),
        "wall_seconds": round(seconds, 1),
        "bad_samples": trainer.bad_samples.count(),
        "samples_seen": count_samples(state.global_step, trainer.step_samples, len(trainer.train_dataset)),
        "processes": trainer.args.world_size,
        "tokens_seen": state.num_input_tokens_seen,
        "peak_memory_bytes": peak,
        "parameters": model.num_parameters(),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "git_commit": get_git_commit(),
        "versions": get_versions(),
        "device": get_device_name(),
        "command": command,
    }


def count_samples(steps: int, step_samples: int, samples: int) -> int:
    """Return how many samples a run has seen after some steps; the last step of an epoch may have fewer."""
    epochs, more = divmod(steps, math.ceil(samples / step_samples))
    return epochs * samples + min(more * step_samples, samples)
