"""`cal train model=hf` and `cal eval` on the types that people train today, with the library's own processors.

Most of these processors need torchvision: the last line of `make slow` runs these tests with it.
"""

import json

import pytest

pytest.importorskip("torchvision")

from tests.cal import cal
from tests.models.published_processors import PROCESSORS, save

pytestmark = pytest.mark.torchvision


@pytest.mark.parametrize("name", PROCESSORS)
def test_it_trains_and_answers(name, caption_files, tmp_path):
    words = [
        f"model.path={save(name, tmp_path / 'model')}",
        *caption_files,
        "batch_size=4",
        "max_steps=3",
        "logging_steps=1",
    ]
    words += ["launch.processes=1", "name=run", "learning_rate=0.01"]
    assert "will not learn to stop" not in cal("train", "model=hf", *words, folder=tmp_path).stdout
    (run,) = (path.parent for path in tmp_path.glob("runs/train/run/*/summary.json"))
    logs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [log["loss"] for log in logs if "loss" in log]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert all(log["delta_mean"] != 0 for log in logs if "delta_mean" in log)
    cal("eval", f"checkpoint={run}", "benchmark.n=2", "benchmark.max_new_tokens=4", folder=tmp_path)
    assert json.loads((run / "eval/scenes/results.json").read_text())["n"] == 12


@pytest.mark.parametrize("name", ["qwen3_vl", "llama4", "smolvlm"])
def test_where_torchvision_is_missing_one_sentence_says_so(name, caption_files, tmp_path):
    words = ["train", "model=hf", f"model.path={save(name, tmp_path / 'model')}", *caption_files]
    refused = cal(*words, folder=tmp_path, check=False, PYTHONPATH="")
    assert refused.returncode == 2
    assert "needs the package torchvision: pip install 'cal_cli[processors]'" in refused.stderr
