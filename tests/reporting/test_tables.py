"""Tables as a terminal of 80 columns shows them."""

import io

import pandas as pd
import pytest
from rich.console import Console

from cal_cli.reporting.results import Condition
from cal_cli.reporting.tables import (
    describe_headline,
    make_headline_table,
    make_mean_tables,
    make_pair_table,
    summarize_metric,
)

SIX = ["scene_accuracy", "questions_accuracy", "reading_accuracy", "charts_accuracy", "documents_anls", "iou"]
TWO = ["accuracy", "f1"]


def make_pair(objective, metrics, only_first=None, only_second=None):
    differences = {metric: {"value": 0.301 + i / 100, "ci95": [0.254, 0.348]} for i, metric in enumerate(metrics)}
    test = {"p": 0.00021, "only_first": only_first, "only_second": only_second}
    noise = {"condition": "0.5", "settings": {}, "noise_kind": "swap", "noise_ratio": 0.5}
    return noise | {"objective": objective, "seed": 0, "differences": differences, "test": test, "n": 9}


def show(table):
    page = io.StringIO()
    Console(file=page, width=80).print(table)
    return page.getvalue()


@pytest.mark.parametrize(("metrics", "alone"), [(SIX, ()), (TWO, (3, 41))])
def test_differences_fit_on_a_terminal(metrics, alone):
    pairs = [make_pair(objective, metrics, *alone) for objective in ("cal", "posterior")]
    text = show(make_pair_table(pairs, metrics, "ce"))
    assert "…" not in text
    for i in range(len(metrics)):
        assert text.count(f"+{0.301 + i / 100:.3f} [+0.254, +0.348]") == 2
    assert text.count("0.00021") == 2
    assert text.count("41 : 3") == (2 if alone else 0)


def make_table(rows):
    """Rows of a metric as `collect_results` makes them, of runs whose answers and first checkpoints are not known."""
    table = pd.DataFrame(rows, columns=["condition", "objective", "seed", "value", "low", "high"])
    return table.assign(run=[f"run-{n}" for n in range(len(table))], start=None)


def test_a_difference_over_fewer_seeds_than_its_row_says_so():
    clean = Condition((), "swap", 0.0)
    runs = [("ce", 0), ("ce", 1), ("cal", 0), ("cal", 1), ("cal", 2), ("posterior", 1), ("posterior", 0)]
    table = make_table([(clean, *run, 0.5, 0.4, 0.6) for run in runs])
    seeds = make_mean_tables(summarize_metric(table, "m", "ce"), "ce")["m"].columns[2]
    assert list(seeds.cells) == ["2", "3 (2 paired)", "2"]


def make_rows(*runs):
    """Summaries of two metrics of runs, each (noise, objective, seed, value), with an interval of ±0.1 over images."""
    rows = [(Condition((), "swap", n), o, s, v, v - 0.1, v + 0.1) for n, o, s, v in runs]
    table = make_table(rows)
    return [row for metric in ("fully_correct", "reading") for row in summarize_metric(table, metric, "ce")]


def test_the_headline_has_a_line_for_each_run_and_the_checkpoint_before_training():
    rows = make_rows((0.0, "ce", 0, 0.8), (0.5, "ce", 0, 0.4), (0.5, "posterior", 0, 0.7))
    start = {metric: {"value": 0.25, "ci95": [0.2, 0.3]} for metric in ("fully_correct", "reading")}
    lines = show(make_headline_table(rows, start, "scenes")).splitlines()
    assert [line.split()[:5] for line in lines if "±" in line] == [
        ["-", "before", "training", "0.25", "±0.05"],
        ["0", "ce", "0.80", "±0.10", "0.80"],
        ["0.5", "ce", "0.40", "±0.10", "0.40"],
        ["0.5", "posterior", "0.70", "±0.10", "0.70"],
    ]
    assert describe_headline(rows, start, "ce") == (
        "With 50% of the captions swapped: posterior fully correct is 0.700, ce 0.400, the checkpoint before training "
        "0.250. posterior minus ce: +0.300."
    )
    assert "before" not in show(make_headline_table(rows, {}, "scenes"))
    assert describe_headline(make_rows((0.0, "ce", 0, 0.8)), {}, "ce") == ""


def test_several_seeds_have_intervals_over_seeds_unless_they_are_identical():
    values = [0.1, 0.2, 0.3]
    rows = make_rows(*((0.0, "ce", n, v) for n, v in enumerate(values)), *((0.0, "cal", n, 0.5) for n in range(3)))
    half = 4.302653 * 0.1 / 3**0.5  # Student's t at 0.975 with two degrees of freedom
    text = show(make_headline_table(rows, {}, "scenes"))
    assert f"0.200 ±{half:.3f}" in text and "0.500 ±" not in text and "seeds" in text


def test_a_table_has_no_column_that_is_empty_throughout():
    one = make_mean_tables(make_rows((0.0, "ce", 0, 0.8), (0.0, "cal", 0, 0.9)), "ce")["reading"]
    assert [column.header for column in one.columns] == ["noise", "objective", "seeds", "mean", "minus ce"]
    alone = make_mean_tables(make_rows((0.0, "ce", 0, 0.8)), "ce")["reading"]
    assert [column.header for column in alone.columns] == ["noise", "objective", "seeds", "mean"]
