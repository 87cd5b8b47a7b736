"""Which runs count as completed: those with the same config, also one that an earlier version of the package wrote."""

import json
import shutil

import pytest
from omegaconf import OmegaConf

from cal_cli.runtime.errors import InputError
from cal_cli.runtime.runs import clear, find_last_checkpoint, flatten, is_completed, read_config, read_summary


@pytest.fixture
def config():
    return OmegaConf.create({"seed": 0, "model": {"path": None, "frozen": False}, "launch": {"processes": 1}})


@pytest.fixture
def run(tmp_path, config):
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    (tmp_path / "summary.json").write_text(json.dumps({"status": "completed"}))
    return tmp_path


def test_a_run_with_the_same_config_is_completed_however_it_was_launched(run, config):
    config.launch.processes = 2
    assert is_completed(run, config)


def test_a_run_of_a_version_without_an_option_is_completed_if_the_option_is_null(run, config):
    config.model.new_option = None
    config.another = None
    assert is_completed(run, config)
    config.model.new_option = True
    with pytest.raises(InputError, match=r"another config \(model.new_option=None, not True\): give another name="):
        is_completed(run, config)


def test_the_message_has_both_values_of_the_options_that_differ(run, config):
    config.seed = 3
    config.model.path = "base"
    with pytest.raises(InputError, match=r"\(model.path=None, not base; seed=0, not 3\)"):
        is_completed(run, config)


def test_a_message_of_many_differences_stays_short(run, config):
    config.model = {"frozen": False} | {f"option_{index}": index for index in range(1, 9)}
    with pytest.raises(InputError, match=r"option_5=None, not 5; and 3 more\)"):
        is_completed(run, config)


def test_zero_and_false_are_values():
    assert flatten({"model": {"path": None, "frozen": False, "width": 0}, "name": ""}) == {
        "model.frozen": False,
        "model.width": 0,
        "name": "",
    }


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_a_kill_in_the_middle_of_clearing_leaves_no_checkpoint_without_the_record_of_its_config(
    run, config, monkeypatch, removed
):
    for folder in ("checkpoints/checkpoint-2", "checkpoint", "eval/scenes"):
        (run / folder).mkdir(parents=True)
        (run / folder / "trainer_state.json").write_text("{}")
    remove, done = shutil.rmtree, []

    def remove_or_die(folder, ignore_errors=False):
        if folder.exists():
            if len(done) == removed:
                raise KeyboardInterrupt
            remove(folder)
            done.append(folder)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(shutil, "rmtree", remove_or_die)
        clear(run)
    assert not read_summary(run)
    assert read_config(run) == OmegaConf.to_container(config)
    assert find_last_checkpoint(run) is None
    clear(run)
    assert not list(run.iterdir())
