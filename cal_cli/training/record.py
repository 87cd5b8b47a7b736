"""What a run read (`inputs.json`), and what it leaves: weights in the format of `transformers`, and `summary.json`."""

import math
import resource
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.distributed.fsdp import FSDPModule

from cal_cli.data.sample import Conversations
from cal_cli.models.llava import save_projector
from cal_cli.models.parts import count_trainable, merge_adapters, trains_only_projector
from cal_cli.objective.passes import unwrap_adapters
from cal_cli.runtime.files import find_differences, identify_files, read_json, replace_folder
from cal_cli.runtime.runs import get_device_name, get_git_commit, get_versions
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
    verify = partial(verify_weights, type(model))
    replace_folder(
        run / "checkpoint", partial(model.save_pretrained, state_dict=state), processor.save_pretrained, verify
    )


def verify_weights(kind: type, folder: Path) -> None:
    """Raise RuntimeError unless the weights in a folder are all those of a model of this class, in names and shapes."""
    saved: Any = next(base for base in kind.__mro__ if not issubclass(base, FSDPModule))
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    _, info = saved.from_pretrained(folder, device_map="meta", **options)  # reads names and shapes alone
    if wrong := [*info["missing_keys"], *info["unexpected_keys"], *info["mismatched_keys"]]:
        raise RuntimeError(
            f"checkpoint/ was not saved: {len(wrong)} of its weights are not the model's, such as {wrong[0]}"
        )


def summarize(
    settings: TrainConfig, trainer: RunTrainer, status: str, seconds: float, objective: str, command: str
) -> dict[str, Any]:
    """Return the contents of `summary.json`; `seconds` and memory are those of this process."""
    model: Any = trainer.model
    state, parameters = trainer.state, list(model.parameters())
    # a run that is too short for a log has only the mean over its steps, which the Trainer logs at the end
    losses = [entry[name] for name in ("train_loss", "loss") for entry in state.log_history if name in entry]
    samples = len(trainer.train_dataset)
    epochs, more = divmod(state.global_step, math.ceil(samples / trainer.step_samples))  # the last step may have fewer
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
        "samples_seen": epochs * samples + min(more * trainer.step_samples, samples),
        "processes": trainer.args.world_size,
        "tokens_seen": state.num_input_tokens_seen,
        "peak_memory_bytes": peak,
        "parameters": model.num_parameters(),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "trainable_by_part": count_trainable(unwrap_adapters(model)),
        "git_commit": get_git_commit(),
        "versions": get_versions(),
        "device": get_device_name(),
        "command": command,
    }


def identify_inputs(config: DictConfig, data: Conversations) -> dict[str, str]:
    """Return a fingerprint of each file or folder that the config names, by its key, and one of the images."""
    node: Any = OmegaConf.to_container(config)
    named = {f"model.{key}": value for key, value in node["model"].items() if key != "_target_"}
    named["objective.reference"] = node["objective"].get("reference")
    return identify_files(named) | identify_data(node["data"], data)


def identify_data(node: dict[str, Any], data: Conversations) -> dict[str, str]:
    """Return a fingerprint of each file or folder that a config's `data` names, by its key, and one of the images."""
    named = {f"data.{key}": value for key, value in node.items() if key in ("path", "rows", "weights")}
    named |= {f"data.sources[{i}].path": source["path"] for i, source in enumerate(node.get("sources", []))}
    return identify_files(named) | {"images": data.fingerprint_images()}


def read_inputs(folder: Path) -> dict[str, Any]:
    """Read `inputs.json` of a run: the `fingerprints` of its inputs, and `step_samples`; empty if there is none.

    `step_samples` is the number of samples of an optimizer step: the number of processes, and with it that of samples,
    may be another when a run is continued.
    """
    return read_json(folder / "inputs.json", {})


def find_changed_inputs(folder: Path, inputs: dict[str, str]) -> list[str]:
    """Return the inputs that differ from those of the run in the folder; empty if it holds none."""
    return find_differences(read_inputs(folder).get("fingerprints", inputs), inputs)
