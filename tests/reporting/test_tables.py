"""Tables as a terminal of 80 columns shows them."""

import io

import pandas as pd
import pytest
from rich.console import Console

from cal_cli.reporting.results import Condition
from cal_cli.reporting.tables import make_mean_tables, make_pair_table, summarize_metric

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


def test_a_difference_over_fewer_seeds_than_its_row_says_so():
    clean = Condition((), "swap", 0.0)
    runs = [("ce", 0), ("ce", 1), ("cal", 0), ("cal", 1), ("cal", 2), ("posterior", 1), ("posterior", 0)]
    table = pd.DataFrame([(clean, *run, 0.5) for run in runs], columns=["condition", "objective", "seed", "value"])
    seeds = make_mean_tables(summarize_metric(table, "m", "ce"), "ce")["m"].columns[2]
    assert list(seeds.cells) == ["2", "3 (2 paired)", "2"]
