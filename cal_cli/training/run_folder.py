"""The folder of a run: whether it is complete, what a resumed run continues from, and what is written at the end."""

import json
import resource
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cal_cli.config import command_line
from cal_cli.data.conversations import Conversations
from cal_cli.errors import InputError
from cal_cli.files import device_name, git_commit, versions, write_whole
from cal_cli.runs import OPERATIONAL, read_config, summary_of
from cal_cli.training.adapters import merged
from cal_cli.training.parts import only_projector
from cal_cli.training.run_trainer import RunTrainer, save_projector
from cal_cli.training.settings import TrainConfig


def completed(folder: Path, config: DictConfig) -> bool:
    """Whether the folder holds a completed run of this config.

    Raises:
        InputError: it holds a run of another config, completed or not.
    """
    before = read_config(folder)
    if not before:
        return False
    now: Any = OmegaConf.to_container(config)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    differing = [key for key in differing if key not in OPERATIONAL]
    if differing:
        raise InputError(
            f"{folder} holds a run of another config (other values for {', '.join(differing)}): "
            "give another name=..., or force=true to replace it"
        )
    return summary_of(folder).get("status") == "completed"


def forget(folder: Path) -> None:
    """Remove what an earlier run left in the folder."""
    for name in ("summary.json", "metrics.jsonl", "config.yaml", "bad_samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "checkpoint", "projector", "adapter", "eval", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; those that a kill cut short are removed.

    The library writes `trainer_state.json` last, so a checkpoint is whole where that file is.
    """
    found = sorted(
        (folder / "checkpoints").glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1])
    )
    whole = []
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())
            whole.append(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return whole[-1] if whole else None


def save_whole(trainer: RunTrainer, processor: Any, run: Path) -> None:
    """Write `checkpoint/`, or `projector/` where nothing else learnt; each is there whole or not at all.

    Adapters are written to `adapter/` as peft does, and merged into what `checkpoint/` holds. All processes must call
    it together, as shards are gathered; the first one writes.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights = state = None
    if only_projector(trainer.rates):
        weights = trainer.whole_projector()
    elif trainer.is_fsdp_enabled:
        state = trainer.accelerator.get_state_dict(trainer.model)
    if not trainer.is_world_process_zero():
        return
    if weights is not None:
        replace_folder(run / "projector", partial(save_projector, weights))
        return
    if hasattr(model, "merge_and_unload"):
        replace_folder(run / "adapter", model.save_pretrained)
        model = merged(model, run / "adapter")
    replace_folder(run / "checkpoint", partial(model.save_pretrained, state_dict=state), processor.save_pretrained)


def replace_folder(folder: Path, *writers: Callable[[Path], Any]) -> None:
    """Have a folder written beside its place, then put there."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for write in writers:
        write(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`; where even that cannot be written, the message on the terminal must do."""
    try:
        write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    except OSError:
        if summary["status"] != "failed":
            raise


def summarize(
    settings: TrainConfig, trainer: RunTrainer, data: Conversations, status: str, seconds: float
) -> dict[str, Any]:
    """The contents of `summary.json`; seconds and memory are those of this process."""
    model: Any = trainer.model
    state, parameters = trainer.state, list(model.parameters())
    # a run too short for a log has only the mean over its steps, which the library logs at the end
    losses = [entry[name] for name in ("train_loss", "loss") for entry in state.log_history if name in entry]
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "status": status,
        "name": settings.name,
        "objective": HydraConfig.get().runtime.choices["objective"],
        "noise": {"ratio": settings.noise.ratio, "seed": settings.noise.seed},
        "seed": settings.seed,
        "steps": state.global_step,
        "final_loss": losses[-1] if losses else None,
        "wall_seconds": round(seconds, 1),
        "bad_samples": trainer.bad_samples.count(),
        "samples_seen": round(state.epoch * len(data)) if state.epoch else 0,
        "processes": trainer.args.world_size,
        "tokens_seen": state.num_input_tokens_seen,
        "peak_memory_bytes": peak,
        "parameters": model.num_parameters(),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "git_commit": git_commit(),
        "versions": versions(),
        "device": device_name(),
        "command": command_line("train"),
    }
