"""Sweeps by submitit, as on a SLURM cluster; here its own launcher of local processes."""

import json

import pytest

from tests.cal import cal


@pytest.mark.slow
def test_a_sweep_by_submitit_carries_out_its_runs_and_only_those_that_are_missing(tmp_path):
    words = ["train", "-m", "hydra/launcher=submitit_local", "seed=0,1", "data.n=96", "model.from_scratch=true"]
    cal(*words, folder=tmp_path)
    summaries = sorted(tmp_path.glob("runs/train/scenes/*/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in summaries] == ["completed"] * 2
    before = [path.stat().st_mtime_ns for path in summaries]
    cal(*words, folder=tmp_path)
    assert [path.stat().st_mtime_ns for path in summaries] == before
