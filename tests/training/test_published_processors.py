"""`cal train model=hf` and `cal eval` on the types that people train today, with the library's own processors.

Most of these need torchvision, which `make slow` installs beside the environment: it is only imported here.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cal import cal
from tests.models.published_processors import PROCESSORS

TORCHVISION = Path(sys.prefix) / "torchvision"
OPERATORS = Path(__file__).parents[1] / "torchvision_operators"
WITH_TORCHVISION = {"PYTHONPATH": f"{OPERATORS}{os.pathsep}{TORCHVISION}"}
needs_torchvision = pytest.mark.skipif(not TORCHVISION.is_dir(), reason="needs torchvision: make slow installs it")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Save a model with its processor in a process that has torchvision; return the folder."""
    folder = tmp_path_factory.mktemp("models")

    def save(name):
        words = [sys.executable, "-m", "tests.models.published_processors", name, str(folder / name)]
        subprocess.run(
            words, check=True, capture_output=True, cwd=Path(__file__).parents[2], env=os.environ | WITH_TORCHVISION
        )
        return folder / name

    return save


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    captions = ["data.n=24", "data.text_only_share=0.2", "data.families=[captions]", "data.irrelevant=0"]
    cal("noise-inject", "ratio=0", *captions, f"output={folder}", folder=folder)
    return ["data=llava_json", f"data.path={folder}/data.json", f"data.image_folder={folder}/images"]


@pytest.mark.slow
@needs_torchvision
@pytest.mark.parametrize("name", PROCESSORS)
def test_it_trains_and_answers(name, models, world, tmp_path):
    words = [f"model.path={models(name)}", *world, "batch_size=4", "max_steps=3", "logging_steps=1"]
    words += ["launch.processes=1", "name=run", "learning_rate=0.01"]
    told = cal("train", "model=hf", *words, folder=tmp_path, **WITH_TORCHVISION)
    assert "will not learn to stop" not in told.stdout
    (run,) = (path.parent for path in tmp_path.glob("runs/train/run/*/summary.json"))
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [log["loss"] for log in logs if "loss" in log]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(log["delta_mean"] != 0 for log in logs if "delta_mean" in log)
    cal("eval", f"checkpoint={run}", "benchmark.n=2", "benchmark.max_new_tokens=4", folder=tmp_path, **WITH_TORCHVISION)
    assert json.loads((run / "eval/scenes/results.json").read_text())["n"] == 12


@pytest.mark.slow
@needs_torchvision
@pytest.mark.parametrize("name", ["qwen3_vl", "llama4"])
def test_where_torchvision_is_missing_one_sentence_says_so(name, models, world, tmp_path):
    refused = cal("train", "model=hf", f"model.path={models(name)}", *world, folder=tmp_path, check=False)
    assert refused.returncode == 2
    assert "needs the package torchvision: pip install 'cal_cli[processors]'" in refused.stderr
