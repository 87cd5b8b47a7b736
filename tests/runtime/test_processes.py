"""`cal train` in two processes over gloo, sharded or not: the losses of one, and an end of all where one is killed."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cal_cli.runtime.processes import find_free_port
from tests.cal import Running, cal

RUN = ["data.n=96", "data.text_only_share=0.4", "logging_steps=1", "save_steps=4", "keep_checkpoints=3", "batch_size=4"]
RUN += ["global_batch_size=8"]
TWO = [*RUN, "launch=ddp", "launch.processes=2"]
LONG = [*TWO, "max_steps=40"]  # cannot end before a signal that is sent after its step 4


def run_of(folder):
    (run,) = (path.parent for path in Path(folder).glob("runs/train/scenes/*/config.yaml"))
    return run


def weights(folder):
    return load_file(run_of(folder) / "checkpoint/model.safetensors")


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    cal("train", *RUN, folder=folder)
    return folder


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


def assert_same_run(folder, other):
    """The same losses, and in the end the same weights under the same names, but for the order of sums."""
    logs = [(run_of(place) / "metrics.jsonl").read_text().splitlines() for place in (folder, other)]
    assert len(logs[0]) == len(logs[1]) == 12
    for found, expected in zip(*(map(json.loads, log) for log in logs), strict=True):
        for name in ("loss", "grad_norm", "delta_mean", "weight_mean"):
            assert found[name] == pytest.approx(expected[name], abs=2e-4), name
    found, expected = weights(folder), weights(other)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_two_processes_have_the_losses_and_weights_of_one(one, two):
    assert_same_run(two, one)
    summaries = [json.loads((run_of(folder) / "summary.json").read_text()) for folder in (two, one)]
    assert [summary["processes"] for summary in summaries] == [2, 1]
    assert summaries[0]["tokens_seen"] == summaries[1]["tokens_seen"]


@pytest.mark.slow
def test_a_run_continues_with_the_samples_per_step_it_began_with(one, tmp_path):
    words = [word for word in RUN if not word.startswith("global")] + ["batch_size=8"]
    cal("train", *words, folder=tmp_path)
    assert_same_run(tmp_path, one)  # 8 samples are 2 x 4
    set_back(tmp_path, 4)
    more = ["launch=ddp", "launch.processes=2"]
    assert "continuing from checkpoint-4" in cal("train", *words, *more, folder=tmp_path).stdout
    assert_same_run(tmp_path, one)
    summary = json.loads((run_of(tmp_path) / "summary.json").read_text())
    assert summary["steps"] == 12 and summary["samples_seen"] == 96 and summary["processes"] == 2
    set_back(tmp_path, 4)
    refused = cal("train", *words, "launch=ddp", "launch.processes=3", folder=tmp_path, check=False)
    assert refused.returncode == 2
    assert "8 samples in an optimizer step cannot be divided equally among 3 processes" in refused.stderr
    assert (run_of(tmp_path) / "checkpoints/checkpoint-4").is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["fsdp_offload", "fsdp", "zero2"])
def test_sharded_processes_have_the_losses_and_weights_of_one_and_go_on_in_any_launch(one, two, tmp_path, launch):
    shutil.copytree(two / "runs", tmp_path / "runs")
    set_back(tmp_path, 4)
    sharded = [*RUN, f"launch={launch}", "launch.processes=2"]
    assert "continuing from checkpoint-4" in cal("train", *sharded, folder=tmp_path).stdout
    assert_same_run(tmp_path, one)
    set_back(tmp_path, 8)
    assert "continuing from checkpoint-8" in cal("train", *RUN, folder=tmp_path).stdout
    assert_same_run(tmp_path, one)
    for name in ("config.json", "tokenizer.json", "processor_config.json"):
        assert (run_of(tmp_path) / "checkpoint" / name).read_text() == (run_of(one) / "checkpoint" / name).read_text()


def set_back(folder, step):
    """Make a run one that was killed after a step."""
    run = run_of(folder)
    (run / "summary.json").unlink(missing_ok=True)
    shutil.rmtree(run / "checkpoint", ignore_errors=True)
    for path in run.glob("checkpoints/checkpoint-*"):
        if int(path.name.split("-")[-1]) > step:
            shutil.rmtree(path)


@pytest.mark.slow
def test_two_machines_have_the_losses_and_weights_of_one(one, tmp_path):
    words = [*RUN, "launch=ddp", "launch.processes=1", "launch.machines=2", f"launch.port={find_free_port()}"]
    both = [Running("train", *words, f"launch.machine={machine}", folder=tmp_path) for machine in (1, 0)]
    outputs = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    assert_same_run(tmp_path, one)


@pytest.mark.slow
def test_a_sharded_projector_is_the_same_too(tmp_path):
    words = [*RUN, "parts.language_model=0", "parts.vision_tower=0", "max_steps=6"]
    found = []
    for number, launch in enumerate((["launch=single"], ["launch=fsdp", "launch.processes=2"])):
        (tmp_path / str(number)).mkdir()
        cal("train", *words, *launch, folder=tmp_path / str(number))
        found.append(load_file(run_of(tmp_path / str(number)) / "projector/projector.safetensors"))
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_a_run_that_is_killed_and_interrupted_ends_with_the_same_weights(tmp_path, tmp_path_factory):
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    cal("train", *LONG, folder=undisturbed)
    process = Running("train", *LONG, folder=tmp_path)
    wait_for_step(tmp_path, 4)
    os.kill(workers_of(process.pid)[1], signal.SIGKILL)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 1
    assert "was ended by SIGKILL" in output and "The same command continues it" in output
    assert not (run_of(tmp_path) / "checkpoint").exists()
    set_back(tmp_path, 4)
    process = Running("train", *LONG, folder=tmp_path)
    wait_for_step(tmp_path, 8)
    os.kill(process.pid, signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "continuing from checkpoint-4" in output
    assert output.count("interrupted and saved after step") == 1  # both after the same step
    run = run_of(tmp_path)
    words = [*RUN, "max_steps=100", "weight_decay=0.1", f"hydra.run.dir={run.relative_to(tmp_path)}", "force=false"]
    told = cal("train", *words, folder=tmp_path, check=False)
    assert "weight_decay" in told.stderr  # another config: nothing is mixed without being asked for
    assert "continuing from checkpoint-" in cal("train", *LONG, folder=tmp_path).stdout
    for name, value in weights(undisturbed).items():
        assert torch.equal(weights(tmp_path)[name], value), name


def test_wrong_values_are_told_once(tmp_path):
    for words, said in (
        (["launch=ddp", "launch.processes=0"], "each must be at least 1"),
        (["launch=ddp", "launch.machines=2", "launch.processes=1"], "launch.port is null"),
        (["launch=ddp", "launch.machine=1"], "allowed are 0 to 0"),
        (["launch=ddp", "launch.processes=2", "objective.window=4"], "positive odd number"),
        (["launch=ddp", "launch.processes=2", "model.path=nowhere"], "no config.json there"),
        (["launch=fsdp", "launch.processes=1"], "one process has nothing to share"),
        (["launch=ddp", "launch.shard=layers"], "allowed are null, gradients and parameters"),
        (["launch=ddp", "launch.offload=true"], "needs launch.shard=gradients or parameters"),
        (["launch=fsdp", "launch.processes=2", "peft=lora"], "peft cannot be sharded"),
        (["launch=dpp"], "did you mean ddp?"),
    ):
        result = cal("train", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and result.stderr.count(said) == 1, result.stderr
