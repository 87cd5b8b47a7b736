"""The paper's tables: its figures as it prints them, and runs of ours beside them."""

import json

import pytest

from cal_cli.reporting.paper import PUBLISHED, TABLES, collect_paper_results, load_published, make_paper_rows
from cal_cli.runtime.errors import InputError
from tests.cal import cal
from tests.reporting.test_reporting import write_run


def add(run, name, metric, value, ci95=None):
    (run / f"eval/{name}").mkdir(parents=True)
    told = {"metrics": {metric: {"value": value, "ci95": ci95}}}
    (run / f"eval/{name}/results.json").write_text(json.dumps(told))


@pytest.fixture
def runs(tmp_path):
    for objective, better in (("ce", 0.0), ("cal", 0.01)):
        for seed in (0, 1):
            run = write_run(tmp_path / "runs", objective, 0.0, seed, 0.5, evaluated=False)
            add(run, "ocrbench", "ocrbench_accuracy", 0.5 + better + seed / 100, [0.4, 0.6])
            add(run, "docvqa", "anls", 0.7 - better, [0.6, 0.8])
        add(run, "textcaps", "textcaps_CIDEr", 1.1 + better, [1.0, 1.2])
        add(run, "mmt", "accuracy", 50.0 + better, [45.0, 55.0])
    return tmp_path / "runs"


def test_each_row_of_the_paper_has_a_figure_for_each_benchmark():
    assert all(len(values) == len(TABLES[title]) for title, rows in PUBLISHED.items() for values in rows.values())


def test_ours_stand_beside_the_paper_s_in_its_units(runs):
    tables = make_paper_rows(collect_paper_results([str(runs)]), "ce")
    one, two = tables["table 1"], tables["table 2"]
    assert [row.get("wins") for row in one[:4]] == [None, [7, 7], None, [6, 7]]  # as the paper prints them
    assert [row.get("wins") for row in two[:4]] == [None, [4, 4], None, [4, 4]]
    ce, cal_row = one[4:]
    assert ce["model"] == "ce" and cal_row["model"] == "cal"
    assert ce["cells"]["ocrbench"]["value"] == pytest.approx(505) and ce["cells"]["ocrbench"]["n"] == 2
    half = 12.706205 * 5  # Student's t at 0.975 with one degree of freedom, times the standard error
    assert ce["cells"]["ocrbench"]["ci95"] == pytest.approx([505 - half, 505 + half], rel=1e-4)
    assert ce["cells"]["mmt"] == {"value": 50.0, "ci95": [45.0, 55.0], "n": 1}
    assert "docvqa" in ce["cells"] and "chartqa" not in ce["cells"]
    assert cal_row["wins"] == [2, 3]  # not in docvqa
    assert two[5]["cells"]["textcaps"]["value"] == pytest.approx(111) and two[5]["wins"] == [1, 1]
    assert "ce-0.0-0" in ce["source"] and "the paper" in one[0]["source"]


def test_other_published_rows_are_shown_below_the_paper_s(runs, tmp_path):
    path = tmp_path / "more.yaml"
    path.write_text("table 1:\n  M: [500, 70.0, null, 60.0, 1, 2, 3]\n  M + CAL: [510, 69.0, 1, null, 2, 3, 4]\n")
    rows = make_paper_rows(collect_paper_results([str(runs)]), "ce", load_published(str(path)))["table 1"]
    assert [row["model"] for row in rows[4:]] == ["M", "M + CAL", "ce", "cal"]
    assert [row["source"] for row in rows[3:5]] == ["the paper, table 1", "given by published="]
    assert rows[5]["wins"] == [4, 5] and "textvqa" not in rows[5]["cells"]  # of what both have, all but docvqa
    assert len(load_published(str(path))["table 2"]) == len(PUBLISHED["table 2"])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("table 1: [1, 2]", "each with rows"),
        ("table 3:\n  M: [1]", "table 3: there is no such table; allowed are table 1, table 2"),
        ("table 2:\n  M: [1, 2, 3]", "table 2, M: give a list of 4 numbers or null, for coco_caption"),
        ("table 2:\n  M: [1, 2, 3, high]", "table 2, M: give a list of 4 numbers or null"),
        ("table 2: {M: [", "cannot be read as YAML"),
    ],
)
def test_a_wrong_file_of_published_rows_is_explained(text, named, tmp_path):
    (tmp_path / "more.yaml").write_text(text)
    with pytest.raises(InputError, match=named):
        load_published(str(tmp_path / "more.yaml"))
    with pytest.raises(InputError, match="there is no such file"):
        load_published(str(tmp_path / "none.yaml"))


def test_the_command_prints_and_writes_both(runs):
    told = cal("report", "runs=runs", "results=paper", folder=runs.parent).stdout
    assert "table 1" in told and "LLaVA-NeXT-13B + CAL" in told and "2/3" in told
    assert max(map(len, told.partition("the paper,")[0].splitlines())) <= 80
    text = (runs.parent / "runs/report/runs/paper.md").read_text()
    assert "| cal | 515 [" in text and "| runs/cal-0.0-0, runs/cal-0.0-1 |" in text


def test_without_any_result_the_command_that_makes_them_is_told(tmp_path):
    write_run(tmp_path, "ce", 0.0, 0, 0.5)
    with pytest.raises(InputError, match="run cal eval benchmark=paper"):
        collect_paper_results([str(tmp_path)])
