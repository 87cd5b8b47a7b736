"""Find run folders and checkpoints; the layout is `cal train`'s: `summary.json`, `checkpoint/`, `eval/`."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

from cal_cli.errors import InputError
from cal_cli.models.load import TINY_BASE

TRAIN_RUNS = Path("runs/train")
# keys of a run's config that say how it is carried out and reported, not what it computes
OPERATIONAL = (
    "resume",
    "force",
    "workers",
    "keep_checkpoints",
    "save_steps",
    "logging_steps",
    "launch",
    "report_to",
    "plan",
)


def summary_of(folder: Path) -> dict[str, Any]:
    """A run's `summary.json`; empty where there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """A run's `config.yaml`; empty where there is none."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def completed_runs(folder: Path) -> list[Path]:
    """All completed runs in a folder or below it, in the order of their names."""
    found = sorted(path.parent for path in folder.rglob("summary.json"))
    return [run for run in found if summary_of(run)["status"] == "completed"]


def find_checkpoints(given: str | None) -> list[Path]:
    """The checkpoints that `checkpoint=` means.

    Args:
        given: a folder with a model, a run folder, a folder of runs, a hub id, `tiny` for the shipped base, or None
            for the run that was completed last.

    Raises:
        InputError: nothing is found there.
    """
    if given == "tiny":
        return [TINY_BASE]
    if given is None:
        runs = sorted(completed_runs(TRAIN_RUNS), key=lambda run: (run / "summary.json").stat().st_mtime)
        if not runs:
            raise InputError(f"no completed run in {TRAIN_RUNS}: run cal train first, or give checkpoint=...")
        return with_checkpoint(runs[-1:], str(runs[-1]))
    folder = Path(given)
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and folder.parts[0] not in ("runs", ".", ".."):
            return [folder]  # a hub id, which is tried when the model is loaded
        raise InputError(f"checkpoint={given}: there is no such folder")
    if (folder / "config.json").is_file():
        return [folder]
    runs = completed_runs(folder)
    if not runs:
        raise InputError(f"checkpoint={given}: neither a model (config.json) nor a completed run lies there")
    return with_checkpoint(runs, f"checkpoint={given}")


def with_checkpoint(runs: list[Path], given: str) -> list[Path]:
    """The checkpoints of completed runs; those that trained a projector alone have none.

    Raises:
        InputError: none has one.
    """
    found = [run / "checkpoint" for run in runs if (run / "checkpoint").is_dir()]
    if not found:
        raise InputError(
            f"{given}: holds a projector alone, of stage=pretrain; train on with stage=finetune "
            f"model.projector={runs[-1] / 'projector'}"
        )
    return found


def result_folder(checkpoint: Path, kind: str, name: str) -> Path:
    """Where results about a checkpoint go: `<run>/<kind>/<name>`, or `runs/<kind>/<name>/...` outside a run."""
    run = checkpoint.parent
    if checkpoint.name == "checkpoint" and (run / "summary.json").is_file():
        return run / kind / name
    return Path("runs") / kind / name / checkpoint.name
