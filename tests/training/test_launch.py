"""`cal train` in two processes over gloo: the losses of one, and an end of all where one is killed."""

import json
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.cal import cal, started

RUN = ["data.n=96", "data.text_only_share=0.4", "objective.normalization=sample", "logging_steps=1", "save_steps=4"]
TWO = [*RUN, "batch_size=4", "launch=ddp", "launch.processes=2"]


def run_of(folder):
    (run,) = (path.parent for path in Path(folder).glob("runs/train/scenes/*/config.yaml"))
    return run


def weights(folder):
    return load_file(run_of(folder) / "checkpoint/model.safetensors")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    cal("train", *TWO, folder=folder)
    return folder


def wait_for_step(folder, step):
    for _ in range(1200):
        if list(Path(folder).glob(f"runs/train/scenes/*/checkpoints/checkpoint-{step}/trainer_state.json")):
            return
        time.sleep(0.05)
    raise AssertionError(f"no checkpoint after step {step}")


def workers_of(pid):
    """The ranks and process ids of the run's processes, by what their environment says."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in command:
            found[int(entry.name)] = command
    return sorted(found)


def test_two_processes_have_the_losses_and_weights_of_one(two, tmp_path):
    cal("train", *RUN, "batch_size=8", folder=tmp_path)
    logs = []
    for folder in (two, tmp_path):
        lines = (run_of(folder) / "metrics.jsonl").read_text().splitlines()
        logs.append([json.loads(line) for line in lines])
    assert len(logs[0]) == len(logs[1]) == 12
    for one, other in zip(*logs, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-4)
        assert one["delta_mean"] == pytest.approx(other["delta_mean"], abs=2e-3)
        assert one["weight_mean"] == pytest.approx(other["weight_mean"], abs=2e-3)
    for name, value in weights(tmp_path).items():
        torch.testing.assert_close(weights(two)[name], value, atol=1e-3, rtol=0)
    summaries = [json.loads((run_of(folder) / "summary.json").read_text()) for folder in (two, tmp_path)]
    assert [summary["processes"] for summary in summaries] == [2, 1]
    assert summaries[0]["tokens_seen"] == summaries[1]["tokens_seen"]


def test_a_killed_process_ends_the_run_and_the_same_command_continues_it(two, tmp_path):
    process = started("train", *TWO, folder=tmp_path)
    wait_for_step(tmp_path, 4)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "was ended by SIGKILL" in output and "The same command continues it" in output
    assert not (run_of(tmp_path) / "checkpoint").exists()
    assert "continuing from checkpoint-" in cal("train", *TWO, folder=tmp_path).stdout
    for name, value in weights(two).items():
        assert torch.equal(weights(tmp_path)[name], value), name


@pytest.mark.slow
def test_an_interrupt_stops_all_after_the_same_step(two, tmp_path):
    process = started("train", *TWO, folder=tmp_path)
    wait_for_step(tmp_path, 4)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert output.count("interrupted and saved after step") == 1
    words = [*RUN, "batch_size=4", "gradient_accumulation_steps=2"]
    run = run_of(tmp_path)
    told = cal(
        "train", *words, f"hydra.run.dir={run.relative_to(tmp_path)}", "force=false", folder=tmp_path, check=False
    )
    assert "gradient_accumulation_steps" in told.stderr  # another config: nothing is mixed without being asked for
    assert "continuing from" in cal("train", *TWO, folder=tmp_path).stdout


def test_wrong_values_are_told_once(tmp_path):
    for words, said in (
        (["launch=ddp", "launch.processes=0"], "each must be at least 1"),
        (["launch=ddp", "launch.machines=2", "launch.processes=1"], "launch.port is null"),
        (["launch=ddp", "launch.machine=1"], "allowed are 0 to 0"),
        (["launch=ddp", "launch.processes=2", "objective.window=4"], "positive odd number"),
        (["launch=ddp", "launch.processes=2", "model.path=nowhere"], "no config.json there"),
        (["launch=dpp"], "did you mean ddp?"),
    ):
        result = cal("train", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and result.stderr.count(said) == 1, result.stderr
