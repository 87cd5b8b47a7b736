"""lmms-eval as a second engine: it evaluates a checkpoint, and its results are read into the same `results.json`."""

import json
import subprocess
import sys
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from cal_cli.config import command_line
from cal_cli.errors import InputError
from cal_cli.files import device_name, versions

NORMAL = 1.959964  # standard errors to either side of a 95 % interval


def evaluate_by_lmms_eval(checkpoint: Path, name: str, benchmark: DictConfig, limit: int | None) -> dict[str, Any]:
    """Have lmms-eval answer and score its own task of a benchmark.

    Args:
        checkpoint: a model of LLaVA's kind in the library's format.
        name: of the benchmark.
        benchmark: its config, whose `lmms_eval` names the task.
        limit: questions, of the first; None means all.

    Returns:
        As `results.json` has it; intervals are of lmms-eval's standard errors, None where it gives none.

    Raises:
        InputError: lmms-eval is not installed, knows no such task, or fails.
    """
    task = benchmark.get("lmms_eval")
    if task is None:
        raise InputError(f"engine=lmms_eval: benchmark={name} names no task of lmms-eval (its key lmms_eval)")
    if find_spec("lmms_eval") is None:
        raise InputError(
            "engine=lmms_eval needs lmms-eval: pip install 'cal_cli[lmms-eval]', in an environment of its own, as it "
            "brings many packages along"
        )
    with tempfile.TemporaryDirectory() as folder:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        words = [sys.executable, "-m", "lmms_eval", "--model", "llava_hf", "--device", device]
        words += ["--model_args", f"pretrained={checkpoint},device_map={device}", "--tasks", task, "--batch_size", "1"]
        words += ["--output_path", folder, *(["--limit", str(limit)] if limit is not None else [])]
        try:
            subprocess.run(words, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"engine=lmms_eval: `{' '.join(words[1:])}` failed ({error}); see its output") from error
        files = sorted(Path(folder).rglob("*results.json"))
        if not files:
            raise InputError("engine=lmms_eval: it wrote no results; see its output")
        document = json.loads(files[-1].read_text())
    return {
        "benchmark": name,
        "split": benchmark.split,
        "checkpoint": str(checkpoint),
        **read_document(document, task),
        "versions": versions() | {"lmms_eval": version("lmms_eval")},
        "device": device_name(),
        "command": command_line("eval"),
    }


def read_document(document: dict[str, Any], task: str) -> dict[str, Any]:
    """What lmms-eval's results say of a task: `n`, `metrics`, `prompt` and `generation`."""
    found: dict[str, dict[str, Any]] = {}
    of_task = document["results"][task]
    for key, value in of_task.items():
        metric, _, kind = key.partition(",")
        if not kind or "_stderr" in metric or isinstance(value, bool) or not isinstance(value, int | float):
            continue
        error = of_task.get(f"{metric}_stderr,{kind}")
        known = isinstance(error, int | float)
        found[metric] = {
            "value": float(value),
            "ci95": [value - NORMAL * error, value + NORMAL * error] if known else None,
        }
    samples = document.get("n-samples", {}).get(task, {})
    config = document.get("configs", {}).get(task, {})
    return {
        "n": samples.get("effective", samples.get("original")),
        "metrics": found,
        "prompt": config.get("lmms_eval_specific_kwargs"),
        "generation": config.get("generation_kwargs"),
    }
