"""Folder names, and values checked against the annotations of whatever a config names."""

import os
import re
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cal_cli.objective import RuleLoss
from cal_cli.objective.contrasts import NoImage
from cal_cli.objective.rules import ClampedDifference
from cal_cli.runtime.config import build, name_folder
from cal_cli.runtime.errors import InputError

KEYS = st.sampled_from(["objective", "noise.ratio", "seed", "data.path", "model.path", "learning_rate", "name"])
OVERRIDES = st.lists(st.tuples(KEYS, st.text(max_size=80)).map("=".join), max_size=6)


def test_a_short_name_is_the_overrides_sorted():
    assert name_folder([]) == "default"
    assert name_folder(["seed=1", "objective=cal", "name=x"], ["name"]) == "objective-cal__seed-1"
    assert name_folder(["data.path=a/b.json"]) == "data.path-a_b.json"


def test_a_long_name_keeps_objective_noise_and_seed_and_shortens_paths():
    path = "/".join(["a very long folder with images and conversations"] * 4) + "/train.json"
    words = [f"data.path={path}", f"data.image_folder={path}/images", "objective=cal", "objective.window=9"]
    words += ["noise.ratio=0.3", "seed=12", "data=llava_json", f"model.path={path}"]
    name = name_folder(words)
    assert len(name) <= 120
    for part in ("objective-cal", "objective.window-9", "noise.ratio-0.3", "seed-12", "data.path-train.json"):
        assert part in name
    others = [name_folder([*words[:5], f"seed={seed}", *words[6:]]) for seed in range(20)]
    assert len(set(others)) == 20
    moved = [word.replace("a very", "another") for word in words]
    assert name_folder(moved) != name  # shortened to the same words, but another hash


def test_a_shortened_name_is_the_same_in_every_process():
    """Sets have another order in each: seven words of one length, of which not all fit."""
    words = [f"optimizer.{letter * 12}=0.1234567890" for letter in "abcdefg"]
    code = f"from cal_cli.runtime.config import name_folder; print(name_folder({words!r}))"
    names = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
        ).stdout
        for seed in range(4)
    }
    assert len(names) == 1 and "aaa" in names.pop()


@given(OVERRIDES)
def test_names_need_no_quotes_and_do_not_depend_on_the_order(overrides):
    name = name_folder(overrides)
    assert shlex.quote(name) == name or re.fullmatch(r"[\w.+-]+", name)
    assert 0 < len(name) <= 120
    assert name_folder(overrides[::-1]) == name


MODULE = """
from __future__ import annotations

from dataclasses import dataclass

from cal_cli.objective.rules import ClampedDifference


@dataclass(frozen=True)
class ShiftedDifference(ClampedDifference):
    shift: float = 1.0

    def __call__(self, scores):
        return (scores.delta + self.shift).clamp(self.alpha, self.beta)
"""


@pytest.fixture
def shifted(tmp_path, monkeypatch):
    """A module that extends one of our rules and imports nothing that our annotations use."""
    (tmp_path / "shifted.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield "shifted.ShiftedDifference"
    sys.modules.pop("shifted", None)


def test_a_dataclass_that_extends_ours_is_built_with_checked_types(shifted):
    def make(**options):
        rule = {"_target_": shifted, **options}
        loss = {"_target_": "cal_cli.objective.RuleLoss", "rule": rule, "ratio": None, "window": 1}
        return build(OmegaConf.create({"objective": loss}), "objective")

    objective = make(shift="0.5")
    assert isinstance(objective, RuleLoss)
    assert (objective.rule.shift, objective.window, objective.contrast) == (0.5, 1, NoImage())
    with pytest.raises(InputError, match=r"objective\.rule\.shift has the wrong type"):
        make(shift="far")
    with pytest.raises(InputError, match=r"beta=0\.0: the bounds must satisfy"):
        make(beta=0, alpha=0)
    with pytest.raises(InputError, match=r"objective\.rule\.far is not an option of objective\.rule"):
        make(far=2)


def test_a_class_with_its_own_arguments_has_their_types():
    target = "cal_cli.objective.ContrastiveAlignmentLoss"
    objective = build(OmegaConf.create({"objective": {"_target_": target, "alpha": "0.5"}}), "objective")
    assert objective.rule == ClampedDifference(alpha=0.5)
    with pytest.raises(InputError, match=r"objective\.beta has the wrong type"):
        build(OmegaConf.create({"objective": {"_target_": target, "beta": "far"}}), "objective")
    with pytest.raises(InputError, match="window=2: the pooling window must be a positive odd number"):
        build(OmegaConf.create({"objective": {"_target_": target, "window": 2}}), "objective")


def test_what_cannot_be_imported_is_one_sentence():
    for path in ("nowhere.Loss", "cal_cli.objective.NoLoss"):
        with pytest.raises(InputError, match="cannot be imported") as caught:
            build(OmegaConf.create({"objective": {"_target_": path}}), "objective")
        assert "\n" not in str(caught.value)


def test_excluded_keys_and_those_within_them_do_not_name_a_folder():
    words = ["seed=1", "benchmark.n=4", "+benchmark.x=1", "benchmark=mme", "launch.processes=2", "launcher=a", "name=x"]
    assert name_folder(words, ["benchmark", "launch", "name"]) == "launcher-a__seed-1"
