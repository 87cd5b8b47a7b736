"""Run folders, with the layout of `cal train`: their state, checkpoints, results, and what these come from."""

import hashlib
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout
from omegaconf import DictConfig, OmegaConf

from cal_cli.runtime.config import UNNAMED, update_target
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, remove_folder, write_whole

TRAIN_RUNS = Path("runs/train")
TINY = Path(__file__).parent.parent / "toy" / "tiny"  # the shipped checkpoint, `tiny` in commands
BEFORE_TRAINING = "before_training"  # in a folder of runs: results of the checkpoint that they started from
LEARNT = "objective.json"  # in a run and in its checkpoints: what the objective has learnt from the data
# options of earlier versions, with the only value that is left
RETIRED = (("objective.rule.unit", "sample"), ("rule.unit", "sample"), ("parts.image_newline", 1.0))
# keys in which the config of a run may differ when it is continued
OPERATIONAL = (*UNNAMED, "study", "workers", "keep_checkpoints", "save_steps", "logging_steps")


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json`; empty if there is none."""
    return read_json(folder / "summary.json", {})


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's `config.yaml`; empty if there is none."""
    return read_json(folder / "config.yaml", {}, yaml.safe_load)


def flatten(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the options of a config node and of the nodes within it, by dotted names, without those that are null.

    A config that an earlier version has written lacks the options that were added since, which are null by default:
    both give the same. False is a value: `bf16=false` differs from `bf16=null`.
    """
    options: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, dict):
            options |= flatten(value, f"{prefix}{key}.")
        elif key == "_target_":
            options[f"{prefix}{key}"] = update_target(value)
        elif value is not None and (f"{prefix}{key}", value) not in RETIRED:
            options[f"{prefix}{key}"] = value
    return options


def is_completed(folder: Path, config: DictConfig) -> bool:
    """Return whether the folder holds a completed run with this config.

    Raises InputError if it holds a run with another config.
    """
    before = read_config(folder)
    if not before:
        return False
    now: Any = OmegaConf.to_container(config)
    nodes = [flatten({key: value for key, value in node.items() if key not in OPERATIONAL}) for node in (before, now)]
    values = {key: [node.get(key) for node in nodes] for key in sorted(nodes[0].keys() | nodes[1].keys())}
    differing = [f"{key}={old}, not {new}" for key, (old, new) in values.items() if old != new]
    if differing:
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise InputError(
            f"{folder} holds a run with another config ({'; '.join(differing[:5])}{more}): "
            "give another name=..., or force=true to replace it"
        )
    return read_summary(folder).get("status") == "completed"


def clear(folder: Path) -> None:
    """Remove what an earlier run left in the folder.

    The record of its config and inputs goes last: as long as there are checkpoints, it says what they come from.
    """
    (folder / "summary.json").unlink(missing_ok=True)
    for name in ("checkpoints", "checkpoint", "projector", "adapter", "eval", "tensorboard"):
        remove_folder(folder / name)
    for name in ("metrics.jsonl", "bad_samples.jsonl", LEARNT, "inputs.json", "config.yaml"):
        (folder / name).unlink(missing_ok=True)


@contextmanager
def hold(folder: Path, report: Callable[[str], None]) -> Iterator[None]:
    """Keep other processes from working in a folder; if one is at work there, say so and wait for it."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        report(f"{folder}: another process is at work there; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def find_last_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint of a run, and remove what a kill left incomplete or half removed.

    The Trainer writes `trainer_state.json` last, so a checkpoint that has this file is complete.
    """
    for path in (folder / "checkpoints").glob(".checkpoint-*"):
        shutil.rmtree(path)
    complete = []
    for path in list_checkpoints(folder / "checkpoints"):
        try:
            json.loads((path / "trainer_state.json").read_text())
            complete.append(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return complete[-1] if complete else None


def list_checkpoints(folder: Path) -> list[Path]:
    """List the Trainer's checkpoints in a folder by their steps, complete or not."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[-1]))


def find_unfinished_runs(folder: Path) -> list[Path]:
    """Find all runs in a folder and its subfolders that have begun and are not completed, sorted by name."""
    begun = sorted(path.parent for path in folder.rglob("config.yaml") if path.parent.name != ".hydra")
    return [run for run in begun if read_summary(run).get("status") != "completed"]


def find_completed_runs(folder: Path) -> list[Path]:
    """Find all completed runs in a folder and its subfolders, sorted by name."""
    begun = sorted(path.parent for path in folder.rglob("summary.json"))
    return [run for run in begun if read_summary(run)["status"] == "completed"]


def find_checkpoints(given: str | None) -> list[Path]:
    """Find the checkpoints that `checkpoint=` names.

    `given` is a folder with a model, a run folder, a folder of runs, a hub id, `tiny`, or None for the run that was
    completed last. Raises InputError if nothing is found.
    """
    if given == "tiny":
        return [TINY]
    if given is None:
        runs = sorted(find_completed_runs(TRAIN_RUNS), key=lambda run: (run / "summary.json").stat().st_mtime)[-1:]
        if not runs:
            raise InputError(f"no completed run in {TRAIN_RUNS}: run cal train first, or give checkpoint=...")
    else:
        folder = Path(given)
        if not folder.is_dir():
            if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and folder.parts[0] not in ("runs", ".", ".."):
                return [folder]  # a hub id, which is tried when the model is loaded
            raise InputError(f"checkpoint={given}: there is no such folder")
        if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
            return [folder]
        runs = find_completed_runs(folder)
        if not runs:
            raise InputError(f"checkpoint={given}: the folder holds neither a model (config.json) nor a completed run")
    checkpoints = [run / "checkpoint" for run in runs if (run / "checkpoint").is_dir()]
    if not checkpoints:
        raise InputError(
            f"checkpoint={runs[-1] if given is None else given}: holds only a projector, from stage=pretrain; train "
            f"further with stage=finetune model.projector={runs[-1] / 'projector'}"
        )
    return checkpoints


def find_checkpoint(given: str | None) -> Path:
    """Find the only checkpoint that `checkpoint=` names, see `find_checkpoints`; raises InputError for several."""
    checkpoints = find_checkpoints(given)
    if len(checkpoints) > 1:
        names = ", ".join(str(checkpoint.parent) for checkpoint in checkpoints)
        raise InputError(f"checkpoint={given} holds several runs: give one of {names}")
    return checkpoints[0]


def find_start(config: Mapping[str, Any]) -> str | None:
    """Return the checkpoint from which a run started, `tiny` for the shipped one; None if a part of it was new."""
    model = config.get("model") or {}
    if any(model.get(key) for key in ("projector", "from_scratch", "new_projector")):
        return None
    return model.get("path") or ("tiny" if str(model.get("_target_")).endswith("TinyModel") else None)


def name_start(start: str) -> str:
    """Return the name of a folder for the results of a checkpoint that runs started from."""
    return "_".join(Path(start).parts[-3:]).replace(":", "_")


def get_run_name(checkpoint: Path) -> str:
    """Return the name of a checkpoint in tables: that of its run, if it belongs to one."""
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name


def get_result_folder(checkpoint: Path, kind: str, name: str) -> Path:
    """Return the folder of results about a checkpoint: `<run>/<kind>/<name>`, or `runs/<kind>/<name>/<checkpoint>`."""
    for run in checkpoint.parents:
        if (run / "config.yaml").is_file() and checkpoint.parent in (run, run / "checkpoints"):
            return run / kind / (name if checkpoint.name == "checkpoint" else f"{name}_{checkpoint.name}")
    folder = Path("runs") / kind / name / checkpoint.name
    owner = folder / "checkpoint.txt"  # another checkpoint of the same name gets another folder
    given = str(checkpoint.resolve() if checkpoint.exists() else checkpoint)
    if owner.is_file() and owner.read_text() != given:
        return folder.with_name(f"{checkpoint.name}-{hashlib.sha256(given.encode()).hexdigest()[:8]}")
    write_whole(owner, given)
    return folder


def get_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on."""
    packages = ("cal_cli", "torch", "transformers", "accelerate", "tokenizers", "numpy", "pillow")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def get_device_name() -> str:
    """Return the name of the accelerator, or the kind of CPU and the number of threads that torch uses."""
    import torch  # here, because it takes seconds, and commands that run no model ask for versions alone

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {torch.get_num_threads()} threads"


def get_git_commit() -> str | None:
    """Return the commit of the checkout that contains this package; None outside a checkout."""
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
