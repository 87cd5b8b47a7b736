"""Sweeps by the launchers of Hydra: submitit, as on a SLURM cluster but with local processes, and joblib."""

import json

import pytest

from tests.cal import cal


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["submitit_local", "joblib"])
def test_a_sweep_carries_out_its_runs_and_only_those_that_are_missing(launcher, tmp_path):
    words = ["train", "seed=0,1", "data.n=96", "model.from_scratch=True"]
    cal(words[0], "seed=0", *words[2:], folder=tmp_path)
    (first,) = tmp_path.glob("runs/train/scenes/*/summary.json")
    before = first.stat().st_mtime_ns
    # in a process that starts anew: joblib waits forever in a fork
    cal(words[0], "-m", f"hydra/launcher={launcher}", *words[1:], folder=tmp_path, OMP_NUM_THREADS="1")
    summaries = tmp_path.glob("runs/train/scenes/*/summary.json")
    assert [json.loads(path.read_text())["status"] for path in summaries] == ["completed"] * 2
    assert first.stat().st_mtime_ns == before
