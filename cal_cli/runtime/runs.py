"""Find run folders, checkpoints and the place of results; the layout is that of `cal train`."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cal_cli.runtime.errors import InputError

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


def read_summary(folder: Path) -> dict[str, Any]:
    """Read a run's `summary.json`; empty if there is none."""
    path = folder / "summary.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def read_config(folder: Path) -> dict[str, Any]:
    """Read a run's `config.yaml`; empty if there is none."""
    path = folder / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else {}


def find_completed_runs(folder: Path) -> list[Path]:
    """Find all completed runs in a folder and its subfolders, sorted by name."""
    found = sorted(path.parent for path in folder.rglob("summary.json"))
    return [run for run in found if read_summary(run)["status"] == "completed"]


def find_checkpoints(given: str | None, shipped: Mapping[str, Path] | None = None) -> list[Path]:
    """Find the checkpoints that `checkpoint=` stands for.

    Args:
        given: a folder with a model, a run folder, a folder of runs, a hub id, a name in `shipped`, or None for the
            run that was completed last.
        shipped: folders of models that come with the package, by name.

    Raises:
        InputError: nothing is found.
    """
    if given is not None and shipped and given in shipped:
        return [shipped[given]]
    if given is None:
        runs = sorted(find_completed_runs(TRAIN_RUNS), key=lambda run: (run / "summary.json").stat().st_mtime)
        if not runs:
            raise InputError(f"no completed run in {TRAIN_RUNS}: run cal train first, or give checkpoint=...")
        return _select_checkpoints(runs[-1:], str(runs[-1]))
    folder = Path(given)
    if not folder.is_dir():
        if re.fullmatch(r"[\w.-]+/[\w.-]+", given) and folder.parts[0] not in ("runs", ".", ".."):
            return [folder]  # a hub id, which is tried when the model is loaded
        raise InputError(f"checkpoint={given}: there is no such folder")
    if (folder / "config.json").is_file():
        return [folder]
    runs = find_completed_runs(folder)
    if not runs:
        raise InputError(f"checkpoint={given}: the folder holds neither a model (config.json) nor a completed run")
    return _select_checkpoints(runs, f"checkpoint={given}")


def _select_checkpoints(runs: list[Path], given: str) -> list[Path]:
    found = [run / "checkpoint" for run in runs if (run / "checkpoint").is_dir()]
    if not found:
        raise InputError(
            f"{given}: holds only a projector, from stage=pretrain; train further with stage=finetune "
            f"model.projector={runs[-1] / 'projector'}"
        )
    return found


def get_run_name(checkpoint: Path) -> str:
    """Return the name of a checkpoint in tables: that of its run, if it belongs to one."""
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name


def get_result_folder(checkpoint: Path, kind: str, name: str) -> Path:
    """Return the folder of results about a checkpoint: `<run>/<kind>/<name>`, or `runs/<kind>/<name>/<checkpoint>`."""
    run = checkpoint.parent
    if checkpoint.name == "checkpoint" and (run / "summary.json").is_file():
        return run / kind / name
    return Path("runs") / kind / name / checkpoint.name
