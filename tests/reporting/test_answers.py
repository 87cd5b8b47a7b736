"""Runs with their answers: differences, gains and their files, against the scores that the test writes."""

import json

import numpy as np
import pytest
import yaml

from cal_cli.reporting.results import RUNS, SCORES, collect_results
from cal_cli.reporting.tables import summarize_results
from cal_cli.runtime.errors import InputError
from cal_cli.statistics.seeds import estimate_over_runs
from tests.cal import cal
from tests.reporting.test_results import write

BASE = 0.4  # the probability of a right answer before training


def write_study(folder, starts=("base",), questions=40, **extra):
    """CE and CAL with three seeds each, and the checkpoints that they started from; returns all scores by run."""
    drawn = np.random.default_rng(0)
    scores = {name: (drawn.random(questions) < BASE).astype(float) for name in starts}
    for name in starts:
        write(
            folder / "before_training" / name / "eval/b",
            scores[name],
            metrics={"right": {"value": scores[name].mean()}},
        )
    for objective, skill in (("ce", 0.5), ("cal", 0.7)):
        for seed in range(3):
            found = (drawn.random(questions) < skill).astype(float)
            run = folder / f"{objective}-{seed}"
            scores[objective, seed] = found
            settings = {"benchmark": {"headline": ["right"]}}
            write(run / "eval/b", found, metrics={"right": {"value": found.mean()}}, settings=settings)
            config = {"name": "t", "seed": seed, "data": {}, "noise": {}, "objective": {}}
            config |= {"model": {"path": starts[seed % len(starts)]}} | extra
            (run / "config.yaml").write_text(yaml.safe_dump(config))
            summary = {"status": "completed", "objective": objective, "noise": {"ratio": 0.5}, "seed": seed}
            (run / "summary.json").write_text(json.dumps(summary | {"command": "cal", "device": "d", "versions": {}}))
    return scores


@pytest.mark.parametrize("starts", [("base",), ("one", "two", "three"), ("one", "two")])
def test_differences_and_gains_are_paired_by_seed_and_image(tmp_path, starts):
    scores = write_study(tmp_path, starts)
    results = collect_results([str(tmp_path)], "b")
    ce, cal_ = summarize_results(results, ["right"], "ce")
    of = {name: np.stack([scores[name, seed] for seed in range(3)]) for name in ("ce", "cal")}
    before = np.stack([scores[starts[seed % len(starts)]] for seed in range(3)])
    named = [starts[seed % len(starts)] for seed in range(3)]
    for found, known in (
        (cal_["difference"], of["cal"] - of["ce"]),
        (cal_["gain"], of["cal"] - before),
        (ce["gain"], of["ce"] - before),
        (cal_["mean"], of["cal"]),
    ):
        expected = estimate_over_runs(known, named)
        assert found["value"] == pytest.approx(known.mean())
        assert found["ci95"] == pytest.approx(expected["ci95"])
    assert cal_["difference"]["p_holm"] == cal_["difference"]["p"]  # the only one
    assert ce["gain"]["p_holm"] == pytest.approx(
        max(ce["gain"]["p"], min(1, 2 * min(ce["gain"]["p"], cal_["gain"]["p"])))
    )
    start = results.before_training
    assert start["right"]["value"] == pytest.approx(np.mean([scores[name].mean() for name in starts]))
    assert start["checkpoint"] == ", ".join(sorted(starts))
    assert results.table["condition"].iloc[0].settings == ()


def test_runs_that_are_compared_by_their_checkpoint_have_no_common_one(tmp_path):
    write_study(tmp_path / "a", ("one",))
    write_study(tmp_path / "b", ("two",))
    results = collect_results([str(tmp_path / "a"), str(tmp_path / "b")], "b")
    assert {condition.name for condition in results.table["condition"]} == {
        "model.path=one, noise 0.5",
        "model.path=two, noise 0.5",
    }
    assert results.before_training == {}
    assert all(row["gain"] for row in summarize_results(results, ["right"], "ce"))


def test_a_report_s_folder_gives_the_same_report(tmp_path):
    write_study(tmp_path / "runs", ("one", "two"))
    words = ["results=b", "metrics=[right]"]
    first = cal("report", "runs=runs", "output=first", *words, folder=tmp_path)
    second = cal("report", "runs=first", "output=second", *words, folder=tmp_path)
    assert first.stdout.splitlines()[:-2] == second.stdout.splitlines()[:-2]
    for name in ("report.md", "report.json", "figure3.png", "differences.png"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    assert not (tmp_path / "second" / RUNS).exists()  # the first has it
    other = cal("report", "runs=first", "results=c", folder=tmp_path, check=False)
    assert other.returncode == 2 and "has results on b, not c: give results=b" in other.stderr
    (tmp_path / "first" / SCORES).write_bytes(b"PAR1")
    broken = cal("report", "runs=first", *words, folder=tmp_path, check=False)
    assert broken.returncode == 2 and f"{RUNS} or {SCORES} is missing or damaged" in broken.stderr


def test_runs_without_answers_have_intervals_over_seeds(tmp_path):
    write_study(tmp_path)
    for seed in range(3):
        (tmp_path / f"cal-{seed}/eval/b/parts.jsonl").unlink()
    results = collect_results([str(tmp_path)], "b")
    (row,) = [row for row in summarize_results(results, ["right"], "ce") if row["difference"]]
    values = results.select("right").pivot(index="seed", columns="objective", values="value")
    known = estimate_over_runs((values["cal"] - values["ce"]).to_numpy()[:, None])
    assert row["gain"] is None and row["difference"]["ci95"] == pytest.approx(known["ci95"])
    text = cal("report", f"runs={tmp_path}", "results=b", "output=out", folder=tmp_path).stdout
    assert "95 % interval" in text and "Over seeds alone" in (tmp_path / "out/report.md").read_text()


def test_answers_to_other_questions_are_refused(tmp_path):
    for name, questions in (("a", 40), ("b", 39)):
        write_study(tmp_path / name, questions=questions)
    for seed in range(3):
        (tmp_path / f"b/ce-{seed}/summary.json").unlink()
        (tmp_path / f"a/cal-{seed}/summary.json").unlink()
    results = collect_results([str(tmp_path / "a"), str(tmp_path / "b")], "b")
    with pytest.raises(InputError, match="do not answer the same questions"):
        summarize_results(results, ["right"], "ce")
