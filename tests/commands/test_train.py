"""`cal train` as typed: run folders, resuming after every kind of end, and the same bits each time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.cal import Running, cal

SMALL = [
    "model.from_scratch=true",
    "data.n=96",
    "batch_size=8",
    "logging_steps=2",
    "save_steps=4",
    "name=t",
    "noise.ratio=0.5",
]
LONG = [*SMALL, "max_steps=60"]  # cannot end before a signal that is sent after its step 8


def run_folder(folder):
    (run,) = (path.parent for path in Path(folder).glob("runs/train/*/*/config.yaml"))
    return run


def weights(run):
    return load_file(run / "checkpoint" / "model.safetensors")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    cal("train", *SMALL, folder=folder)
    return run_folder(folder)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A longer run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("long")
    cal("train", *LONG, folder=folder)
    return run_folder(folder)


def same_weights(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items()) and one.keys() == other.keys()


def test_the_run_folder_holds_what_it_promises(uninterrupted):
    summary = json.loads((uninterrupted / "summary.json").read_text())
    assert summary["status"] == "completed"
    assert summary["steps"] == 12
    assert summary["samples_seen"] == 96
    assert (
        summary["parameters"]
        == summary["trainable_parameters"]
        == sum(w.numel() for w in weights(uninterrupted).values())
    )
    assert summary["command"] == "cal train " + " ".join(SMALL)
    assert (uninterrupted / ".hydra" / "overrides.yaml").exists()
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10, 12]
    assert set(lines[0]) == {
        "step",
        "epoch",
        "loss",
        "learning_rate",
        "grad_norm",
        "weight_mean",
        "delta_mean",
        "share_at_alpha",
        "share_at_beta",
        "tokens_per_second",
    }
    assert all(value is not None for line in lines for value in line.values())
    assert {path.name for path in (uninterrupted / "checkpoints").iterdir()} == {"checkpoint-8", "checkpoint-12"}
    names = {path.name for path in (uninterrupted / "checkpoint").iterdir()}
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth"))]


def test_the_checkpoint_loads_without_this_package(uninterrupted):
    code = (
        "import sys; from transformers import AutoModelForImageTextToText, AutoProcessor;"
        f"AutoModelForImageTextToText.from_pretrained({str(uninterrupted / 'checkpoint')!r});"
        f"AutoProcessor.from_pretrained({str(uninterrupted / 'checkpoint')!r});"
        "assert 'cal_cli' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    model = AutoModelForImageTextToText.from_pretrained(uninterrupted / "checkpoint")
    assert model.dtype == torch.float32
    assert AutoProcessor.from_pretrained(uninterrupted / "checkpoint").image_token_id == model.config.image_token_id


def test_the_same_command_writes_the_same_bits_and_a_completed_run_is_not_repeated(uninterrupted, tmp_path):
    cal("train", *SMALL, folder=tmp_path)
    run = run_folder(tmp_path)
    assert (run / "checkpoint/model.safetensors").read_bytes() == (
        uninterrupted / "checkpoint/model.safetensors"
    ).read_bytes()
    before = (run / "summary.json").stat().st_mtime_ns
    assert "already completed" in cal("train", *SMALL, folder=tmp_path).stdout
    assert "memory of one device" in cal("train", *SMALL, "plan=true", folder=tmp_path).stdout
    assert (run / "summary.json").stat().st_mtime_ns == before
    cal("train", *SMALL, "force=true", "report_to=tensorboard", folder=tmp_path)
    assert (run / "summary.json").stat().st_mtime_ns != before
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "delta_mean"):
        told = {scalar.step: scalar.value for scalar in events.Scalars(f"train/{name}")}
        assert told == pytest.approx({line["step"]: line[name] for line in lines})


def wait_for(pattern, folder, process):
    while not list(Path(folder).glob(pattern)):
        assert process.poll() is None, process.read()
        time.sleep(0.02)


@pytest.mark.slow
def test_a_killed_run_continues_to_the_same_weights(long, tmp_path):
    process = Running("train", *LONG, folder=tmp_path)
    wait_for("runs/train/t/*/checkpoints/checkpoint-8/trainer_state.json", tmp_path, process)
    process.kill()
    process.wait()
    run = run_folder(tmp_path)
    assert not (run / "summary.json").exists()
    (run / "checkpoints/checkpoint-59").mkdir()  # as a kill in the middle of saving leaves it
    (run / "checkpoints/checkpoint-59/model.safetensors").write_bytes(b"half")
    assert "continuing from checkpoint-" in cal("train", *LONG, folder=tmp_path).stdout
    assert same_weights(weights(run), weights(long))
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(2, 61, 2))


@pytest.mark.slow
def test_ctrl_c_saves_and_the_same_command_continues_to_the_same_weights(long, tmp_path):
    process = Running("train", *LONG, folder=tmp_path)
    wait_for("runs/train/t/*/checkpoints/checkpoint-4/trainer_state.json", tmp_path, process)
    os.kill(process.pid, signal.SIGINT)
    output, _ = process.communicate()
    run = run_folder(tmp_path)
    assert process.returncode == 130, output
    assert "The same command continues it" in output
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 4 <= summary["steps"] < 60
    assert f"checkpoint-{summary['steps']}" in {path.name for path in (run / "checkpoints").iterdir()}
    cal("train", *LONG, folder=tmp_path)
    assert same_weights(weights(run), weights(long))


def test_another_config_in_the_same_folder_is_refused(uninterrupted, tmp_path):
    cal("train", *SMALL, folder=tmp_path)
    run = run_folder(tmp_path)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("learning_rate: 0.0003", "learning_rate: 0.002"))
    result = cal("train", *SMALL, folder=tmp_path, check=False)
    assert result.returncode == 2
    assert "learning_rate" in result.stderr


@pytest.mark.slow
def test_changed_data_on_disk_start_a_completed_run_again(tmp_path):
    cal("noise-inject", "data.n=16", "ratio=0", "output=world", folder=tmp_path)
    words = ["train", "model.from_scratch=true", "batch_size=8"]
    words += ["data=llava_json", "data.path=world/data.json", "data.image_folder=world/images"]
    cal(*words, folder=tmp_path)
    assert "already completed" in cal(*words, folder=tmp_path).stdout
    file = tmp_path / "world/data.json"
    entries = json.loads(file.read_text())
    entries[0]["conversations"][-1]["value"] += " corrected"
    file.write_text(json.dumps(entries))
    assert "data.path changed since the earlier run; starting again" in cal(*words, folder=tmp_path).stdout
    image = next((tmp_path / "world").rglob(entries[0]["image"]))
    os.utime(image, ns=(1, 1))
    assert "images changed since the earlier run; starting again" in cal(*words, folder=tmp_path).stdout
    assert "already completed" in cal(*words, folder=tmp_path).stdout


def test_force_with_a_wrong_value_keeps_the_earlier_run(tmp_path):
    words = ("train", "data.n=8", "batch_size=4", "name=kept")
    assert "completed, 2 steps, loss" in cal(*words, folder=tmp_path).stdout  # too short for a log
    (run,) = (tmp_path / "runs/train/kept").iterdir()
    result = cal(*words, "force=true", "objective.window=2", f"hydra.run.dir={run}", folder=tmp_path, check=False)
    assert result.returncode == 2
    assert (run / "checkpoint/model.safetensors").exists()
    assert (run / "summary.json").exists()


def test_a_non_finite_loss_ends_with_step_samples_and_last_checkpoint(tmp_path):
    result = cal("train", *SMALL, "learning_rate=1e30", "max_grad_norm=0", "save_steps=1", folder=tmp_path, check=False)
    assert result.returncode == 1
    assert "the loss is nan after step" in result.stdout or "the loss is inf after step" in result.stdout
    assert "train-0-0000" in result.stdout
    assert "last good checkpoint" in result.stdout
    assert json.loads((run_folder(tmp_path) / "summary.json").read_text())["status"] == "failed"


@pytest.mark.slow
def test_the_world_on_disk_with_noise_trains_to_the_same_weights(uninterrupted, tmp_path):
    """noise-inject writes exactly what train noise.ratio sees, PNGs and JSON included."""
    cal("noise-inject", "data.n=96", "ratio=0.5", "seed=0", "output=world", folder=tmp_path)
    words = [word for word in SMALL if word not in ("data.n=96", "noise.ratio=0.5")]
    on_disk = ["data=llava_json", "data.path=world/data.json", "data.image_folder=world/images"]
    cal("train", *words, *on_disk, folder=tmp_path)
    assert same_weights(weights(run_folder(tmp_path)), weights(uninterrupted))


@pytest.mark.slow
def test_a_full_disk_leaves_the_last_checkpoint_and_the_same_command_continues(uninterrupted, tmp_path):
    """A limit on the size of files stands for the full disk: the model's fits until step 4, then nothing does."""
    code = (
        "import resource, sys, threading, time, pathlib\n"
        "def fill():\n"
        "    while not list(pathlib.Path('.').glob('runs/train/t/*/checkpoints/checkpoint-4/trainer_state.json')):\n"
        "        time.sleep(0.005)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "threading.Thread(target=fill, daemon=True).start()\n"
    )
    result = cal("train", *SMALL, folder=tmp_path, check=False, before=code)
    assert result.returncode == 1, result.stderr
    assert "a file could not be read or written" in result.stdout and "checkpoint-4" in result.stdout
    run = run_folder(tmp_path)
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    assert not (run / "checkpoint").exists()
    assert "continuing from checkpoint-4" in cal("train", *SMALL, folder=tmp_path).stdout
    assert same_weights(weights(run), weights(uninterrupted))


@pytest.mark.slow
def test_grouped_batches_continue_in_the_order_of_their_epoch(tmp_path):
    words = ["train", *SMALL, "data.n=48", "epochs=2", "group_by_modality_length=true", "keep_checkpoints=3"]
    words.remove("data.n=96")
    cal(*words, folder=tmp_path)
    run = run_folder(tmp_path)
    other = run.with_name("other")
    shutil.copytree(run / "checkpoints/checkpoint-8", other / "checkpoints/checkpoint-8")  # of 12 steps, in epoch 2
    resumed = cal(*words, f"hydra.run.dir={other.relative_to(tmp_path)}", folder=tmp_path)
    assert "continuing from checkpoint-8" in resumed.stdout
    assert same_weights(weights(run), weights(other))


def test_a_damaged_file_of_a_run_is_named(tmp_path):
    words = ["train", "data.n=8", "batch_size=8", "name=t"]
    cal(*words, folder=tmp_path)
    (run,) = tmp_path.glob("runs/train/t/*")
    cal("eval", f"checkpoint={run}", "benchmark.n=2", folder=tmp_path)
    results = run / "eval/scenes"
    for path, command in (
        (run / "summary.json", words),
        (run / "inputs.json", words),
        (run / "config.yaml", words),
        (results / "results.json", ["eval", f"checkpoint={run}", "benchmark.n=2"]),
        (results / "results.json", ["report", "runs=runs/train/t"]),
        (results / "parts.jsonl", ["report", f"compare=[{results},{results}]"]),
    ):
        whole = path.read_text()
        path.write_text('{"a": [')
        refused = cal(*command, folder=tmp_path, check=False)
        assert refused.returncode == 2 and path.name in refused.stderr, refused.stderr
        assert "is damaged" in refused.stderr and refused.stderr.count("\n") == 1
        path.write_text(whole)
    (tmp_path / "runs/hashes.json").write_text("{")  # only saves time
    assert "already completed" in cal(*words, folder=tmp_path).stdout


ESTIMATED = {
    "posterior": ["rho", "r"],
    "truncate": ["loss_threshold"],
    "gmm": ["low_loss_share", "low_loss_mean", "high_loss_mean"],
}
CONTRASTED = ("negative", "ratio", "posterior", "excess")


@pytest.mark.parametrize(
    "objective", ["dft", "gce", "negative", "ratio", "posterior", "vig", "dependence", "excess", "truncate", "gmm"]
)
def test_every_rule_trains(objective, tmp_path):
    words = ["train", f"objective={objective}", "data.n=32", "batch_size=8", "logging_steps=1", "name=t"]
    cal(*words, folder=tmp_path)
    (run,) = tmp_path.glob("runs/train/t/*")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 4 and all(0 < line["weight_mean"] < 5 and line["loss"] > 0 for line in lines)
    assert all((line["delta_mean"] is not None) == (objective in CONTRASTED) for line in lines)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["objective"]["rule"]["_target_"].startswith("cal_cli.objective.rules.")
    summary = json.loads((run / "summary.json").read_text())
    names = ESTIMATED.get(objective, [])
    assert list(summary.get("estimates", {})) == names and all(name in line for line in lines for name in names)
    assert (run / "objective.json").is_file() == bool(names)


@pytest.mark.parametrize("objective", ["gmm", "posterior"])
def test_a_continued_run_remembers_what_its_objective_has_learnt(objective, tmp_path):
    words = [
        "train",
        f"objective={objective}",
        "data.n=64",
        "batch_size=8",
        "logging_steps=1",
        "save_steps=4",
        "name=t",
    ]
    words += ["objective.rule.warmup=2"] if objective == "gmm" else ["+objective.rule.supported=0.9"]
    cal(*words, folder=tmp_path)
    (run,) = tmp_path.glob("runs/train/t/*")
    whole = weights(run), (run / "objective.json").read_text(), (run / "metrics.jsonl").read_text()
    (run / "summary.json").unlink()
    shutil.rmtree(run / "checkpoints/checkpoint-8")
    assert "continuing from checkpoint-4" in cal(*words, folder=tmp_path).stdout
    assert same_weights(weights(run), whole[0]) and (run / "objective.json").read_text() == whole[1]
    shown = [
        [json.loads(line)["weight_mean"] for line in text.splitlines()]
        for text in (whole[2], (run / "metrics.jsonl").read_text())
    ]
    assert shown[0] == shown[1] and min(shown[0]) < 1


def test_a_rule_s_options_are_checked_and_its_scores_can_be_cached(tmp_path):
    words = ["train", "objective=posterior", "data.n=16", "batch_size=8", "name=t"]
    for word, said in (
        ("objective.rule.rho=1", "rho=1.0: the share must be at least 0 and below 1"),
        ("objective.rule.roh=1", "did you mean objective.rule.rho?"),
        ("objective.rule.rho=x", "objective.rule.rho has the wrong type"),
        ("+objective.rule.beta=1", "objective.rule.beta is not an option of objective.rule; its options are rho, r"),
    ):
        refused = cal(*words, word, folder=tmp_path, check=False)
        assert refused.returncode == 2 and said in " ".join(refused.stderr.split()), refused.stderr
    told = cal(*words, "objective.contrast=cached", folder=tmp_path).stdout
    assert "scores before training: computing 16 samples once" in " ".join(told.split())


def test_image_dropout_gives_p_text_its_samples(tmp_path):
    words = ["train", "objective=posterior", "data.n=32", "data.text_only_share=0", "max_steps=2", "batch_size=8"]
    warning = "every sample shows an image"
    assert warning in " ".join(cal(*words, "name=never", folder=tmp_path).stdout.split())
    assert warning not in " ".join(cal(*words, "name=dropped", "image_dropout=0.25", folder=tmp_path).stdout.split())
    without, dropped = (next(tmp_path.glob(f"runs/train/{name}/*")) for name in ("never", "dropped"))
    assert not same_weights(weights(without), weights(dropped))
    for value, said in ((1, "image_dropout=1.0: allowed is"), (0.99, "none of the 32 samples shows an image")):
        refused = cal(*words, "name=refused", f"image_dropout={value}", folder=tmp_path, check=False)
        assert refused.returncode == 2 and said in " ".join(refused.stderr.split()), refused.stderr


@pytest.mark.parametrize(
    ("words", "workers"),
    [
        (["batch_size=1"], 0),
        pytest.param(["batch_size=1"], 1, marks=pytest.mark.slow),
        (["batch_size=4", "group_by_modality_length=true"], 0),
    ],
)
def test_allowed_bad_samples_end_no_run_however_batches_are_made(words, workers, tmp_path):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a disc"}]
    entries = [{"id": str(n), "image": f"{n}.png", "conversations": turns} for n in range(16)]
    for n in range(16):
        content = Image.new("RGB", (64, 64), (n, 0, 0))
        content.save(tmp_path / f"{n}.png")
    for n in (0, 1, 2, 3):  # of the same length: a batch of their own
        entries[n] = {"id": str(n), "conversations": [{"from": "human", "value": "x " * 90}, turns[1]]}
    (tmp_path / "a.json").write_text(json.dumps(entries))
    command = ["train", "data=llava_json", f"data.path={tmp_path / 'a.json'}", "max_length=60", "epochs=1"]
    command += [f"workers={workers}", "name=bad", "launch.processes=1", *words]
    refused = cal(*command, folder=tmp_path, check=False)
    assert refused.returncode == 2 and "data.max_bad_fraction leaves out 0 of 16 samples" in refused.stderr
    assert "Traceback" not in refused.stderr
    cal(*command, "data.max_bad_fraction=0.3", folder=tmp_path)
    (summary,) = (json.loads(path.read_text()) for path in tmp_path.glob("runs/train/bad/*0.3*/summary.json"))
    assert summary["status"] == "completed" and summary["bad_samples"] == 4


def test_a_sweep_goes_on_and_lists_what_failed(tmp_path):
    words = ["train", "-m", "data.n=32", "batch_size=8", "max_steps=1", "name=sweep", "max_length=5,80"]
    swept = cal(*words, "objective=ce,cal", folder=tmp_path, check=False)
    assert swept.returncode == 2 and "2 of the sweep's jobs failed" in swept.stderr
    assert swept.stderr.count("max_length=5") > 2 and len(list(tmp_path.glob("runs/train/sweep/*80*/checkpoint"))) == 2
    for objective in ("ce", "cal"):
        assert f"\n  cal train data.n=32 batch_size=8 max_steps=1 name=sweep max_length=5 objective={objective}" in (
            swept.stderr.replace("'", "")
        )
    again = cal(*words, "objective=ce,cal", folder=tmp_path, check=False)
    assert again.stdout.count("already completed") == 2 and again.returncode == 2


def test_nothing_is_a_choice_where_nothing_may_be_chosen(tmp_path):
    small = ["data.n=32", "batch_size=8", "max_steps=1", "parts.vision_tower=0"]
    for word in ("stage=null", "experiment=null"):
        cal("train", *small, word, folder=tmp_path)
    cal("train", "-m", *small, "peft=null,lora", "name=both", folder=tmp_path)
    assert sorted(
        "adapter" in {path.name for path in run.iterdir()} for run in tmp_path.glob("runs/train/both/*/")
    ) == [False, True]
    refused = cal("train", "data=null", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "data=null: null is no choice" in refused.stderr


@pytest.mark.parametrize(
    "message", ["PytorchStreamWriter failed writing file data/0", "[enforce fail at inline_container.cc:672] . pos"]
)
def test_what_torch_says_of_a_full_disk_is_explained(message, tmp_path, uninterrupted):
    code = (
        "import sys, torch\n"
        "def full(*given, **more):\n"
        f"    raise RuntimeError({message!r})\n"
        "import cal_cli.training.run_trainer\n"
        "torch.save = full\n"
    )
    result = cal("train", *SMALL, folder=tmp_path, check=False, before=code)
    assert result.returncode == 1 and "is the disk full?" in result.stdout and "Traceback" not in result.stderr
