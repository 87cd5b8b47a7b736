"""Old checkpoints: which of them stay, and that a kill in the middle of a removal leaves none that looks whole."""

import json
import os
import shutil

import pytest
from transformers import TrainerState, TrainingArguments

from cal_cli.data.sample import Bad
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.runs import find_last_checkpoint
from cal_cli.training.callbacks import BadSamples, CheckpointRemover


@pytest.fixture
def checkpoints(tmp_path):
    """Checkpoints of steps 2 to 10, of which that of step 2 was changed last."""
    for step in (10, 8, 6, 4, 2):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "trainer_state.json"):
            (folder / name).write_text("{}")
        os.utime(folder, (1e9 - step * 60, 1e9 - step * 60))
    return tmp_path / "checkpoints"


def save(checkpoints, keep):
    arguments = TrainingArguments(output_dir=str(checkpoints), use_cpu=True)
    CheckpointRemover(keep).on_save(arguments, TrainerState(), None)


@pytest.mark.parametrize("keep", [1, 2, 4, 5, 9])
def test_the_checkpoints_of_the_most_steps_stay(checkpoints, keep):
    save(checkpoints, keep)
    assert {path.name for path in checkpoints.iterdir()} == {
        f"checkpoint-{step}" for step in sorted([2, 4, 6, 8, 10])[-keep:]
    }


def test_a_kill_in_the_middle_of_a_removal_leaves_no_half_of_a_checkpoint(checkpoints, monkeypatch):
    def remove_one_file(folder, ignore_errors=False):
        if folder.exists():
            (folder / "optimizer.pt").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", remove_one_file)
        save(checkpoints, 2)
    assert all(len(list(path.iterdir())) == 3 for path in checkpoints.glob("checkpoint-*"))
    assert find_last_checkpoint(checkpoints.parent).name == "checkpoint-10"
    assert sorted(path.name for path in checkpoints.iterdir()) == [f"checkpoint-{step}" for step in (10, 4, 6, 8)]
    save(checkpoints, 2)
    assert {path.name for path in checkpoints.iterdir()} == {"checkpoint-8", "checkpoint-10"}


ONE, TWO, THREE = (Bad(str(number), "cannot be read") for number in (1, 2, 3))


def test_each_is_named_once_and_one_too_many_is_named_and_raised(tmp_path):
    messages, path = [], tmp_path / "bad.jsonl"
    found = BadSamples(path, 2, messages.append)
    assert found.count() == 0
    found.add([ONE, TWO])
    found.add([TWO, ONE])  # the next epoch
    again = BadSamples(path, 2, messages.append)  # the run goes on
    again.add([TWO])
    assert found.count() == again.count() == 2
    assert messages == [f"left out: sample {number}: cannot be read" for number in (1, 2)]
    with pytest.raises(InputError, match=r"3 samples are bad, more than .* allows \(2\)"):
        again.add([THREE])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["1", "2", "3"]


def test_none_may_be_bad(tmp_path):
    with pytest.raises(InputError):
        BadSamples(tmp_path / "bad.jsonl", 0, print).add([ONE])
