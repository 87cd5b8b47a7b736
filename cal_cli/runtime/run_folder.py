"""The folder of one run: whether it is complete, what a resumed run continues from, and how it is cleared."""

import json
import shutil
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_whole
from cal_cli.runtime.runs import OPERATIONAL, read_config, read_summary


def is_completed(folder: Path, config: DictConfig) -> bool:
    """Return whether the folder holds a completed run with this config.

    Raises:
        InputError: it holds a run, completed or not, with another config.
    """
    before = read_config(folder)
    if not before:
        return False
    now: Any = OmegaConf.to_container(config)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    differing = [key for key in differing if key not in OPERATIONAL]
    if differing:
        raise InputError(
            f"{folder} holds a run with another config (different values of {', '.join(differing)}): "
            "give another name=..., or force=true to replace it"
        )
    return read_summary(folder).get("status") == "completed"


def clear(folder: Path) -> None:
    """Remove what an earlier run left in the folder."""
    for name in ("summary.json", "metrics.jsonl", "config.yaml", "bad_samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "checkpoint", "projector", "adapter", "eval", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)


def find_last_checkpoint(folder: Path) -> Path | None:
    """Find the newest complete checkpoint of a run, and remove those that a kill left incomplete.

    The Trainer writes `trainer_state.json` last, so a checkpoint that has this file is complete.
    """
    found = sorted(
        (folder / "checkpoints").glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1])
    )
    complete = []
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())
            complete.append(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return complete[-1] if complete else None


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`. If a failed run cannot even write this file, its message on the terminal must do."""
    try:
        write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    except OSError:
        if summary["status"] != "failed":
            raise
