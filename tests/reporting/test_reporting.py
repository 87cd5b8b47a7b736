"""Reports over run folders that the test writes: means, intervals and pairs by hand."""

import json

import pytest
import yaml

from cal_cli.reporting.collect import collect_results, name_noise, tabulate_metric
from cal_cli.reporting.figures import draw_noise_figure
from cal_cli.reporting.tables import summarize_metric
from cal_cli.runtime.errors import InputError


def write_run(
    folder, objective, ratio, seed, value, status="completed", evaluated=True, options=None, kind=None, **config
):
    run = folder / f"{objective}-{ratio}-{seed}"
    run.mkdir(parents=True)
    config = {
        "name": "t",
        "seed": seed,
        "data": {"n": 9, "seed": seed},
        "objective": options or {},
        "noise": {},
    } | config
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    noise = {"ratio": ratio, **({"kind": kind} if kind else {})}
    summary = {"status": status, "objective": objective, "noise": noise, "seed": seed, "command": "cal"}
    (run / "summary.json").write_text(json.dumps(summary | {"device": "d", "versions": {}}))
    if evaluated:
        (run / "eval/scenes").mkdir(parents=True)
        (run / "eval/scenes/results.json").write_text(json.dumps({"metrics": {"scene_accuracy": {"value": value}}}))
    return run


def test_rows_pair_by_noise_and_seed(tmp_path):
    for ratio in (0.0, 0.5):
        for seed in (0, 1):
            write_run(tmp_path, "ce", ratio, seed, 0.5 - ratio / 2 + seed / 10)
            write_run(tmp_path, "cal", ratio, seed, 0.6 - ratio / 2 + seed / 5)
    results, unevaluated = collect_results([str(tmp_path)], "scenes")
    rows = {
        (row["noise_ratio"], row["objective"]): row
        for row in summarize_metric(tabulate_metric(results, "scene_accuracy"), "m", "ce")
    }
    assert not unevaluated
    assert list(rows) == [(0.0, "ce"), (0.0, "cal"), (0.5, "ce"), (0.5, "cal")]
    assert rows[0.0, "ce"]["mean"]["value"] == pytest.approx(0.55)
    assert rows[0.0, "ce"]["difference"] is None
    assert rows[0.5, "cal"]["difference"]["value"] == pytest.approx((0.1 + 0.2) / 2)
    assert [row["difference"]["p_holm"] for row in rows.values() if row["difference"]] == [1.0, 1.0]


def test_kinds_of_noise_are_told_apart_and_share_the_clean_runs(tmp_path):
    for objective, value in (("ce", 0.5), ("cal", 0.6)):
        write_run(tmp_path / "a", objective, 0.0, 0, value, kind="attribute")
        write_run(tmp_path / "b", objective, 0.5, 0, value - 0.1, kind="attribute")
        write_run(tmp_path / "c", objective, 0.5, 0, value - 0.3, kind="swap")
    results, _ = collect_results([str(tmp_path)], "scenes")
    table = tabulate_metric(results, "scene_accuracy")
    rows = summarize_metric(table, "m", "ce")
    names = [(name_noise(row["noise_kind"], row["noise_ratio"]), row["objective"]) for row in rows]
    assert names == [(n, o) for n in ("0", "0.5", "attribute 0.5") for o in ("ce", "cal")]
    assert [row["mean"]["value"] for row in rows] == pytest.approx([0.5, 0.6, 0.2, 0.3, 0.4, 0.5])
    assert draw_noise_figure(table, "scene_accuracy").startswith(b"\x89PNG")


def test_variants_of_an_objective_are_told_apart(tmp_path):
    write_run(tmp_path / "a", "pmi", 0.0, 0, 0.5, options={"window": 3, "alpha": 0})
    write_run(tmp_path / "b", "pmi", 0.0, 0, 0.6, options={"window": 9, "alpha": 0})
    write_run(tmp_path / "b", "ce", 0.0, 0, 0.6, options={"window": 1, "alpha": 1})
    for unit in ("turn", "sample"):
        write_run(tmp_path / unit, "posterior", 0.0, 0, 0.6, options={"rule": {"unit": unit, "r": 0.1}})
    results, _ = collect_results([str(tmp_path)], "scenes")
    names = {"pmi window=3", "pmi window=9", "ce", "posterior rule.unit=turn", "posterior rule.unit=sample"}
    assert {result.objective for result in results} == names


def test_runs_may_start_from_the_projector_of_a_stage_1_with_their_own_objective(tmp_path):
    first, second = ["ce", "cal"], []
    for objective in first:
        options = {"alpha": len(objective)}
        before = write_run(tmp_path / "one", objective, 0.0, 0, 0.5, evaluated=False, options=options)
        (before / "projector").mkdir()
        model = {"projector": str(before / "projector")}
        second.append(write_run(tmp_path / "two", objective, 0.0, 0, 0.5, options=options, model=model))
    results, _ = collect_results([str(tmp_path / "two")], "scenes")
    assert sorted(result.objective for result in results) == ["cal", "ce"]

    config = yaml.safe_load((second[0] / "config.yaml").read_text())
    write_run(tmp_path / "two/mixed", "ce", 0.0, 0, 0.5, options=config["objective"], model=model)
    results, _ = collect_results([str(tmp_path / "two")], "scenes")
    assert sorted(result.objective for result in results) == ["cal", "ce", "ce stage_1=cal"]

    (before / "config.yaml").write_text(yaml.safe_dump(config | {"max_steps": 9}))
    with pytest.raises(InputError, match="differ in model"):
        collect_results([str(tmp_path / "two")], "scenes")


def test_unfinished_and_unevaluated_runs_are_left_out(tmp_path):
    write_run(tmp_path, "ce", 0.0, 0, 0.5)
    write_run(tmp_path, "cal", 0.0, 0, 0.5, status="interrupted")
    late = write_run(tmp_path, "pmi", 0.0, 0, 0.5, evaluated=False)
    results, unevaluated = collect_results([str(tmp_path)], "scenes")
    assert [result.objective for result in results] == ["ce"]
    assert unevaluated == [late]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    write_run(tmp_path / "a", "ce", 0.0, 0, 0.5)
    write_run(tmp_path / "b", "cal", 0.0, 0, 0.5, learning_rate=1)
    write_run(tmp_path / "c", "ce", 0.0, 0, 0.6)
    write_run(tmp_path / "d", "ce", 0.0, 1, 0.5, evaluated=False)
    with pytest.raises(InputError, match="no such folder"):
        collect_results([str(tmp_path / "none")], "scenes")
    with pytest.raises(InputError, match="same objective, noise and seed"):
        collect_results([str(tmp_path / "a"), str(tmp_path / "c")], "scenes")
    with pytest.raises(InputError, match="run cal eval"):
        collect_results([str(tmp_path / "d")], "scenes")


def test_runs_of_other_settings_are_named(tmp_path):
    write_run(tmp_path, "ce", 0.0, 0, 0.5, learning_rate=1)
    write_run(tmp_path, "cal", 0.0, 0, 0.5, learning_rate=2)
    with pytest.raises(InputError, match="differ in learning_rate"):
        collect_results([str(tmp_path)], "scenes")
