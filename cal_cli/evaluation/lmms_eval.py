"""Evaluate a checkpoint with lmms-eval, and read its results into the same `results.json`."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from cal_cli.runtime.errors import InputError
from cal_cli.runtime.provenance import get_device_name, get_versions

NORMAL = 1.959964  # half width of a 95 % interval in standard errors


def evaluate_with_lmms_eval(
    checkpoint: Path, name: str, benchmark: Mapping[str, Any], limit: int | None, command: str
) -> dict[str, Any]:
    """Let lmms-eval answer and score its own task of a benchmark; return the contents of `results.json`.

    Args:
        checkpoint: a model like LLaVA in the format of `transformers`.
        name: of the benchmark.
        benchmark: its config, whose `lmms_eval` names the task.
        limit: number of questions, from the first; None means all.
        command: the command line that regenerates the results.
    """
    task = benchmark.get("lmms_eval")
    if task is None:
        raise InputError(f"engine=lmms_eval: benchmark={name} names no task of lmms-eval in its key lmms_eval")
    if find_spec("lmms_eval") is None:
        raise InputError(
            "engine=lmms_eval needs lmms-eval: pip install 'cal_cli[lmms-eval]', in a separate environment, as it "
            "installs many packages"
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
        "split": benchmark["split"],
        "checkpoint": str(checkpoint),
        **read_document(document, task),
        "versions": get_versions() | {"lmms_eval": version("lmms_eval")},
        "device": get_device_name(),
        "command": command,
    }


def read_document(document: dict[str, Any], task: str) -> dict[str, Any]:
    """Extract `n`, `metrics`, `prompt` and `generation` of a task from lmms-eval's results."""
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
