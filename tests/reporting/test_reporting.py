"""Reports over run folders that the test writes: means, intervals and pairs by hand."""

import json

import pytest
import yaml

from cal_cli.reporting.figures import (
    choose_axis,
    choose_top,
    describe_seeds,
    draw_curves,
    draw_lines,
    draw_noise_figure,
    make_panels,
    save,
    summarize_curves,
    tabulate_curves,
)
from cal_cli.reporting.results import Condition, choose_baseline, collect_results
from cal_cli.reporting.tables import summarize_metric
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.runs import find_unfinished_runs


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
    results = collect_results([str(tmp_path)], "scenes")
    rows = {
        (row["noise_ratio"], row["objective"]): row
        for row in summarize_metric(results.select("scene_accuracy"), "m", "ce")
    }
    assert not results.unevaluated
    assert list(rows) == [(0.0, "ce"), (0.0, "cal"), (0.5, "ce"), (0.5, "cal")]
    assert rows[0.0, "ce"]["mean"]["value"] == pytest.approx(0.55)
    assert rows[0.0, "ce"]["difference"] is None
    assert rows[0.5, "cal"]["difference"]["value"] == pytest.approx((0.1 + 0.2) / 2)
    assert [row["difference"]["wins"]["won"] for row in rows.values() if row["difference"]] == [2, 2]


def test_objectives_at_their_own_learning_rates_are_compared(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path, "ce", 0.5, seed, 0.2 + seed / 10, learning_rate=1e-3)
        write_run(tmp_path, "cal", 0.5, seed, 0.5 + seed / 10, learning_rate=2e-3)
    table = collect_results([str(tmp_path)], "scenes").select("scene_accuracy")
    assert [row["difference"] for row in summarize_metric(table, "m", "ce")] == [None, None]
    results = collect_results([str(tmp_path)], "scenes", tuned=["learning_rate"])
    _, cal = summarize_metric(results.select("scene_accuracy"), "m", "ce")
    assert cal["difference"]["value"] == pytest.approx(0.3)
    assert results.tuned == [
        "Each objective has its own learning_rate (cal at noise 0.5: 0.002, ce at noise 0.5: 0.001)."
    ]
    write_run(tmp_path / "more", "ce", 0.5, 0, 0.4, learning_rate=2e-3)
    with pytest.raises(InputError, match="have the same objective, noise, seed and settings"):
        collect_results([str(tmp_path)], "scenes", tuned=["learning_rate"])
    with pytest.raises(InputError, match="tuned=lr: no run has such a key"):
        collect_results([str(tmp_path)], "scenes", tuned=["lr"])


@pytest.mark.parametrize(
    ("counts", "said"), [({1}, "one seed, with 95"), ({5}, "means of 5 seeds"), ({10, 3, 5}, "means of 3 to 10 seeds")]
)
def test_the_figure_says_how_many_seeds_its_points_have(counts, said):
    assert describe_seeds(counts).startswith(said)


def test_kinds_of_noise_are_told_apart_and_share_the_clean_runs(tmp_path):
    for objective, value in (("ce", 0.5), ("cal", 0.6)):
        write_run(tmp_path / "a", objective, 0.0, 0, value, kind="attribute")
        write_run(tmp_path / "b", objective, 0.5, 0, value - 0.1, kind="attribute")
        write_run(tmp_path / "c", objective, 0.5, 0, value - 0.3, kind="swap")
    results = collect_results([str(tmp_path)], "scenes")
    table = results.select("scene_accuracy")
    rows = summarize_metric(table, "m", "ce")
    names = [(row["condition"], row["objective"]) for row in rows]
    assert names == [(n, o) for n in ("0", "0.5", "attribute 0.5") for o in ("ce", "cal")]
    assert [row["mean"]["value"] for row in rows] == pytest.approx([0.5, 0.6, 0.2, 0.3, 0.4, 0.5])
    assert draw_noise_figure(rows).startswith(b"\x89PNG")


def test_variants_of_an_objective_are_told_apart(tmp_path):
    write_run(tmp_path / "a", "pmi", 0.0, 0, 0.5, options={"window": 3, "alpha": 0})
    write_run(tmp_path / "b", "pmi", 0.0, 0, 0.6, options={"window": 9, "alpha": 0})
    write_run(tmp_path / "b", "ce", 0.0, 0, 0.6, options={"window": 1, "alpha": 1})
    for r in (0.1, 0.2):
        write_run(tmp_path / str(r), "posterior", 0.0, 0, 0.6, options={"rule": {"rho": 0.3, "r": r}})
    results = collect_results([str(tmp_path)], "scenes")
    names = {"pmi window=3", "pmi window=9", "ce", "posterior rule.r=0.1", "posterior rule.r=0.2"}
    assert set(results.table["objective"]) == names


def test_runs_may_start_from_the_projector_of_a_stage_1_with_their_own_objective(tmp_path):
    first, second = ["ce", "cal"], []
    for objective in first:
        options = {"alpha": len(objective)}
        before = write_run(tmp_path / "one", objective, 0.0, 0, 0.5, evaluated=False, options=options)
        (before / "projector").mkdir()
        model = {"projector": str(before / "projector")}
        second.append(write_run(tmp_path / "two", objective, 0.0, 0, 0.5, options=options, model=model))
    results = collect_results([str(tmp_path / "two")], "scenes")
    assert sorted(results.table["objective"]) == ["cal", "ce"]

    config = yaml.safe_load((second[0] / "config.yaml").read_text())
    write_run(tmp_path / "two/mixed", "ce", 0.0, 0, 0.5, options=config["objective"], model=model)
    results = collect_results([str(tmp_path / "two")], "scenes")
    assert sorted(results.table["objective"]) == ["cal", "ce", "ce stage_1=cal"]

    earlier = yaml.safe_load((before / "config.yaml").read_text())
    (before / "config.yaml").write_text(yaml.safe_dump(earlier | {"max_steps": 9}))
    results = collect_results([str(tmp_path / "two")], "scenes")
    assert {condition.name for condition in results.table["condition"]} == {
        "noise 0",
        "model.projector.max_steps=9, noise 0",
    }


def test_unfinished_and_unevaluated_runs_are_left_out(tmp_path):
    write_run(tmp_path, "ce", 0.0, 0, 0.5)
    write_run(tmp_path, "cal", 0.0, 0, 0.5, status="interrupted")
    late = write_run(tmp_path, "pmi", 0.0, 0, 0.5, evaluated=False)
    results = collect_results([str(tmp_path)], "scenes")
    assert list(results.table["objective"]) == ["ce"]
    assert results.unevaluated == [late]


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    write_run(tmp_path / "a", "ce", 0.0, 0, 0.5)
    write_run(tmp_path / "c", "ce", 0.0, 0, 0.6)
    write_run(tmp_path / "d", "ce", 0.0, 1, 0.5, evaluated=False)
    with pytest.raises(InputError, match="no such folder"):
        collect_results([str(tmp_path / "none")], "scenes")
    with pytest.raises(InputError, match="same objective, noise, seed and settings"):
        collect_results([str(tmp_path / "a"), str(tmp_path / "c")], "scenes")
    with pytest.raises(InputError, match="run cal eval"):
        collect_results([str(tmp_path / "d")], "scenes")


def test_runs_are_compared_under_the_same_settings_only(tmp_path):
    """Whatever differs makes conditions, in the order of numbers; one without the baseline has no difference."""
    for rate in (10.0, 2.0):
        write_run(tmp_path / str(rate), "ce", 0.0, 0, rate / 100, learning_rate=rate)
        write_run(tmp_path / str(rate), "cal", 0.0, 0, rate / 50, learning_rate=rate)
    write_run(tmp_path, "cal", 0.0, 0, 0.5, learning_rate=30.0)
    results = collect_results([str(tmp_path)], "scenes")
    table = results.select("scene_accuracy")
    rows = summarize_metric(table, "m", "ce")
    assert [(row["condition"], row["objective"]) for row in rows] == [
        *(("learning_rate=2, noise 0", objective) for objective in ("ce", "cal")),
        *(("learning_rate=10, noise 0", objective) for objective in ("ce", "cal")),
        ("learning_rate=30, noise 0", "cal"),
    ]
    found = [row["difference"]["value"] if row["difference"] else None for row in rows]
    assert found == [None, pytest.approx(0.02), None, pytest.approx(0.1), None]
    assert rows[0]["settings"] == {"learning_rate": 2.0}
    assert choose_axis(list(table["condition"])) == "learning_rate"
    assert draw_noise_figure(rows).startswith(b"\x89PNG")
    for axis, scale, ticks in (("learning_rate", "log", ["2", "10", "30"]), ("noise", "linear", None)):
        _, (panel,) = make_panels(1)
        draw_lines(panel, rows, axis, ["swap"], "ce")
        assert panel.get_xscale() == scale
        assert ticks is None or [label.get_text() for label in panel.get_xticklabels()] == ticks


def test_the_top_of_a_panel_is_above_what_it_shows():
    def make_row(value, edge):
        return {"metric": "m", "mean": {"value": value, "ci95": [0.0, edge]}}

    assert choose_top([make_row(0.5, 0.6), make_row(0.4, 0.45)], "m") == pytest.approx(1.08 * 0.6)
    assert choose_top([make_row(0.5, 9.0)], "m") == pytest.approx(1.6 * 0.5)  # an interval that says nothing
    assert choose_top([make_row(0.5, 0.6)], "m", {"value": 0.8}) > 0.8  # the checkpoint before training
    assert choose_top([make_row(0.0, 0.0)], "m") == 1.0


def test_the_axis_is_what_has_most_values():
    rates = [Condition((("learning_rate", rate),), "swap", ratio) for rate in (1e-4, 3e-4, 1e-3) for ratio in (0, 0.5)]
    assert choose_axis(rates) == "learning_rate"
    assert choose_axis(rates[:4]) == "noise"  # two of each
    assert choose_axis([Condition((("data", name),), "swap", 0.0) for name in "abc"]) == "noise"  # no numbers


def test_a_legend_is_as_wide_as_its_figure_at_most():
    figure, (panel, *_) = make_panels(3)
    for number in range(9):
        panel.plot([0], [number], label=f"posterior, learning_rate=0.0003, noise 0.{number}")
    save(figure)
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
    assert legend._ncols > 1


def test_runs_of_a_version_without_an_option_are_compared_with_those_where_it_is_null(tmp_path):
    write_run(tmp_path, "ce", 0.0, 0, 0.5, model={"path": "base"})
    write_run(tmp_path, "cal", 0.0, 0, 0.6, model={"path": "base", "new_option": None}, options={"another": None})
    write_run(tmp_path, "cal", 0.0, 1, 0.6, model={"path": "base", "new_option": True})
    results = collect_results([str(tmp_path)], "scenes")
    assert set(results.table["objective"]) == {"ce", "cal"}
    rows = summarize_metric(results.select("scene_accuracy"), "m", "ce")
    off, on = (row["condition"] for row in rows if row["objective"] == "cal")
    assert [row["condition"] for row in rows if row["objective"] == "ce"] == [off] != [on]


def test_the_baseline_is_ce_or_what_is_there(tmp_path):
    for window in (1, 3):
        write_run(tmp_path / str(window), "cal", 0.0, 0, 0.5, options={"window": window})
    results = collect_results([str(tmp_path)], "scenes")
    assert choose_baseline(results.table, None) == "cal window=1"
    assert choose_baseline(results.table, "cal window=3") == "cal window=3"
    with pytest.raises(
        InputError, match="baseline=ce: no run has this objective; there are cal window=1, cal window=3"
    ):
        choose_baseline(results.table, "ce")
    write_run(tmp_path, "ce", 0.0, 0, 0.5)
    assert choose_baseline(collect_results([str(tmp_path)], "scenes").table, None) == "ce"


def test_seeds_of_data_and_noise_are_settings_if_they_are_not_the_run_s(tmp_path):
    write_run(tmp_path / "a", "ce", 0.5, 0, 0.5, noise={"seed": 0})
    write_run(tmp_path / "b", "ce", 0.5, 1, 0.5, noise={"seed": 1})
    results = collect_results([str(tmp_path)], "scenes")
    assert {condition.name for condition in results.table["condition"]} == {"0.5"}
    write_run(tmp_path / "c", "ce", 0.5, 0, 0.5, noise={"seed": 7})
    results = collect_results([str(tmp_path)], "scenes")
    assert {condition.name for condition in results.table["condition"]} == {
        "noise.seed=as the run, noise 0.5",
        "noise.seed=7, noise 0.5",
    }


def test_noise_in_some_families_or_of_other_words_makes_a_condition(tmp_path):
    write_run(tmp_path / "a", "ce", 0.5, 0, 0.5, noise={"seed": 0})
    write_run(tmp_path / "b", "ce", 0.5, 0, 0.5, noise={"seed": 0, "families": ["captions"], "words": None})
    results = collect_results([str(tmp_path)], "scenes")
    names = {condition.name for condition in results.table["condition"]}
    assert names == {"noise 0.5", "noise.families=['captions'], noise 0.5"}


def test_learning_curves_by_hand(tmp_path):
    scores = {("ce", 0): [0.2, 0.6, 0.9], ("ce", 1): [0.4, 0.4, 0.7], ("cal", 0): [0.5, 0.95, 0.9]}
    for (objective, seed), values in scores.items():
        run = write_run(tmp_path, objective, 0.0, seed, values[-1])
        lines = [{"step": 10 * n, "loss": 1.0} for n in (1, 2, 3)]
        lines += [{"step": 100 * n, "eval_scene_accuracy": value} for n, value in enumerate(values, 1)]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    results = collect_results([str(tmp_path)], "scenes")
    table = tabulate_curves(results.table, "scene_accuracy", "ce")
    ce, cal = summarize_curves(table, "scene_accuracy", [0.5, 0.9])
    assert [point["value"] for point in ce["curve"]] == pytest.approx([0.3, 0.5, 0.8])
    assert ce["targets"]["0.5"] == {"steps": 250.0, "reached": 2, "seeds": 2}
    assert ce["targets"]["0.9"] == {"steps": 300.0, "reached": 1, "seeds": 2}
    assert cal["targets"]["0.9"] == {"steps": 200.0, "reached": 1, "seeds": 1}
    assert draw_curves({"scene_accuracy": [ce, cal]}).startswith(b"\x89PNG")
    assert summarize_curves(tabulate_curves(results.table, "other", "ce"), "other", [0.5]) == []


def test_runs_that_have_begun_are_counted(tmp_path):
    write_run(tmp_path, "ce", 0.0, 0, 0.5)
    begun = write_run(tmp_path, "cal", 0.0, 0, 0.5, status="interrupted")
    new = tmp_path / "new"
    (new / ".hydra").mkdir(parents=True)
    (new / "config.yaml").write_text("{}")
    (new / ".hydra/config.yaml").write_text("{}")
    assert find_unfinished_runs(tmp_path) == [begun, new]
