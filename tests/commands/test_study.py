"""`cal study` as typed: missing runs alone are trained, failures are named, and two at once share the work."""

import json
import shlex
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText

from cal_cli.toy.model import load_tiny
from tests.cal import Running, cal

MINE = """
# @package _global_
name: tried
data:
  n: 32
batch_size: 16
hydra:
  sweeper:
    params:
      objective: ce,cal
      noise.ratio: 0,0.5
      seed: 0,1
"""


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/tried.yaml").write_text(MINE)
    (tmp_path / "mine/benchmark").mkdir()
    (tmp_path / "mine/benchmark/few.yaml").write_text("defaults: [scenes]\nn: 4\n")
    return ["study", "--config-dir", "mine", "experiment=tried", "benchmark=few"]


@pytest.mark.slow
def test_a_study_trains_what_is_missing_evaluates_reports_and_names_what_failed(mine, tmp_path):
    """On the benchmark of the experiment, with the number of images that is typed."""
    path = tmp_path / "mine/experiment/tried.yaml"
    path.write_text(path.read_text() + "benchmark:\n  families: [captions, charts]\n  n: 300\n")
    words = [*mine[:-1], "objective=ce", "noise.ratio=0,0.5,1.5", "seed=5", "data.n=48", "benchmark.n=4", "jobs=2"]
    planned = cal(*words, "plan=true", folder=tmp_path).stdout
    assert "tried: 3 runs, 0 completed; 3 to train, 2 at a time" in planned and planned.count("cal train") == 3
    assert not (tmp_path / "runs/train").exists()
    cal(*planned.splitlines()[1].split()[1:], folder=tmp_path)  # one of them as typed
    result = cal(*words, folder=tmp_path, check=False)
    told = " ".join(result.stdout.split())
    assert "3 runs, 1 completed; 2 to train" in told and "2/2" in told and "time left" in told
    assert result.returncode == 1
    assert "failed: cal: noise ratio 1.5: allowed is a number from 0 to 1 cal train" in told
    runs = sorted(tmp_path.glob("runs/train/tried/*/summary.json"))
    assert [json.loads(run.read_text())["status"] for run in runs] == ["completed"] * 2
    assert all(yaml.safe_load((run.parent / "config.yaml").read_text())["data"]["n"] == 48 for run in runs)
    for run in runs:
        found = json.loads((run.parent / "eval/scenes/results.json").read_text())
        assert found["n"] == 8 and {"scene_accuracy", "charts_accuracy"} <= set(found["metrics"])
    report = json.loads((tmp_path / "runs/report/tried/report.json").read_text())
    assert {(row["objective"], row["noise_ratio"]) for row in report["rows"]} == {("ce", 0.0), ("ce", 0.5)}
    assert "3 runs, 2 completed; 1 to train" in cal(*words, "plan=true", folder=tmp_path).stdout


@pytest.mark.slow
def test_table_3_starts_each_run_from_its_seed_s_projector_of_each_objective(mine, tmp_path):
    short = ["max_steps=2", "batch_size=4"]
    for objective in ("ce", "cal"):
        cal("train", "experiment=projector", f"objective={objective}", "seed=1", *short, folder=tmp_path)
        (trained,) = tmp_path.glob(f"runs/train/projector/*max_steps*objective-{objective}*")
        trained.rename(trained.with_name(f"objective-{objective}__seed-1"))
    words = [*mine[:-2], "experiment=table3", "seed=1", *short]
    planned = cal(*words, "plan=true", folder=tmp_path).stdout.splitlines()
    assert planned[0] == "table3: 4 runs, 0 completed; 4 to train, 1 at a time"
    for command in planned[1:]:
        cal(*shlex.split(command)[1:], folder=tmp_path)
    assert "4 runs, 4 completed" in cal(*words, "benchmark=few", folder=tmp_path).stdout
    for run in tmp_path.glob("runs/train/table3/*"):
        config = yaml.safe_load((run / "config.yaml").read_text())
        first = "ce" if "objective-ce__seed-1_projector" in run.name else "cal"
        assert config["model"]["projector"] == f"runs/train/projector/objective-{first}__seed-1/projector"
        # two steps at a small learning rate leave the projector near where it started, and the tower untouched
        start = load_file(tmp_path / config["model"]["projector"] / "projector.safetensors")
        model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint")
        found = model.model.multi_modal_projector.state_dict()
        assert all(torch.dist(found[name.partition(".")[2]], value) < 0.1 for name, value in start.items())
        towers = (one.model.vision_tower.state_dict() for one in (model, load_tiny()[0]))
        assert all(torch.equal(one, other) for one, other in zip(*(tower.values() for tower in towers), strict=True))
    report = json.loads((tmp_path / "runs/report/table3/report.json").read_text())
    assert {row["objective"] for row in report["rows"]} == {"ce", "cal", "cal stage_1=ce", "ce stage_1=cal"}


def test_wrong_words_are_named(mine, tmp_path):
    for words, said in (
        (["study"], "experiment has no value: give one with experiment="),
        (["study", "experiment=none"], "experiment=none: allowed are base, batches, camera, demo, epochs"),
        ([*mine, "jobs=0"], "jobs=0: must be at least 1"),
        ([*mine, "objective=none"], "objective/none"),
        ([*mine, "benchmark.n=0"], "benchmark.n=0: must be at least 1"),
        (["study", "experiment=tiny_base"], "experiment=tiny_base: has no axes"),
    ):
        result = cal(*words, folder=tmp_path, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr


@pytest.mark.slow
def test_sigterm_ends_the_runs_too(mine, tmp_path):
    study = Running(*mine, "jobs=2", "data.n=4000", "batch_size=4", folder=tmp_path)
    while len(list(tmp_path.glob("runs/train/tried/*/metrics.jsonl"))) < 2:
        assert study.poll() is None, study.read()
        time.sleep(0.05)
    study.terminate()
    assert study.wait() == 130
    sizes = {path: path.stat().st_size for path in tmp_path.glob("runs/train/tried/*/metrics.jsonl")}
    time.sleep(2)  # a run that went on would write every second
    assert sizes == {path: path.stat().st_size for path in tmp_path.glob("runs/train/tried/*/metrics.jsonl")}
    assert len(sizes) == 2 and not list(tmp_path.glob("runs/train/tried/*/checkpoint"))


@pytest.mark.slow
def test_sigterm_ends_the_evaluation_too(mine, tmp_path):
    words = [*mine, "objective=ce", "noise.ratio=0", "seed=0", "benchmark.n=1500"]
    study = Running(*words, folder=tmp_path)
    while not list(tmp_path.glob("runs/train/tried/*/eval/**/*")):
        assert study.poll() is None, study.read()
        time.sleep(0.05)
    study.terminate()
    assert study.wait() == 130
    files = {path: path.stat().st_mtime for path in tmp_path.glob("runs/train/tried/*/eval/**/*")}
    time.sleep(3)
    assert files == {path: path.stat().st_mtime for path in tmp_path.glob("runs/train/tried/*/eval/**/*")}
    assert not list(tmp_path.glob("runs/train/tried/*/eval/*/results.json"))


@pytest.mark.slow
def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
    words = ["train", "data.n=240", "batch_size=8", "name=t", "save_steps=4"]
    one = Running(*words, folder=tmp_path)
    while not list(tmp_path.glob("runs/train/t/*/checkpoints/checkpoint-*")):
        assert one.poll() is None, one.read()
        time.sleep(0.05)
    two = cal(*words, folder=tmp_path).stdout
    assert "another process is at work there; waiting for it" in " ".join(two.split()) and "already completed" in two
    assert one.wait() == 0
    (run,) = tmp_path.glob("runs/train/t/*/metrics.jsonl")
    assert [json.loads(line)["step"] for line in run.read_text().splitlines()] == [10, 20, 30]


SHIPPED = {
    "camera": 18,
    "demo": 4,
    "figure3": 150,
    "rivals": 84,
    "noise_kinds": 75,
    "table3": 20,
    "table4": 18,
    "table8": 50,
    "table10": 12,
    "table11": 10,
    "table12": 25,
    "irrelevant": 120,
    "base": 90,
    "learning_rate": 54,
    "batches": 45,
    "epochs": 30,
    "projector": 10,
    "smol_pretrain": 2,
}


@pytest.mark.parametrize("name", SHIPPED)
def test_the_shipped_experiments_list_their_runs(name, tmp_path):
    told = cal("study", f"experiment={name}", "plan=true", folder=tmp_path).stdout
    runs = SHIPPED[name]
    assert f"{name}: {runs} runs, 0 completed" in told
    assert len({line for line in told.splitlines() if line.startswith("cal train")}) == runs


def test_the_study_of_the_base_starts_from_checkpoints_that_the_alignment_keeps(tmp_path):
    plan = cal("study", "experiment=base", "plan=true", folder=tmp_path).stdout
    paths = {word.removeprefix("model.path=") for word in shlex.split(plan) if word.startswith("model.path=")}
    alignment = yaml.safe_load(cal("train", "experiment=tiny_alignment", "--cfg", "job", folder=tmp_path).stdout)
    every, last = alignment["save_steps"], alignment["data"]["n"] // alignment["batch_size"]
    assert last // every <= alignment["keep_checkpoints"]
    kept = {f"runs/train/tiny_alignment/default/checkpoints/checkpoint-{s}" for s in range(every, last + 1, every)}
    assert paths and paths <= kept
