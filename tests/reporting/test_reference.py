"""The headline of the README and its reports are recomputed from the committed scores of all answers."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cal_cli.reporting.results import collect_results
from cal_cli.reporting.tables import summarize_results
from cal_cli.statistics.seeds import estimate_over_runs, format_interval

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "runs/reference/camera"


@pytest.fixture(scope="module")
def results():
    return collect_results([str(FOLDER)], "scenes")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("scores", "name", "benchmark"),
    [
        ("camera", "report.json", "scenes"),
        pytest.param("camera", "objects/report.json", "scenes", marks=SLOW),
        pytest.param("camera/no_text_only", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/dark", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/breaks", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/eight_epochs", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/rivals", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/clean_texts", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/weak_checkpoints", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/learning_rate", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/projector", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/long", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/images_only", "report.json", "scenes", marks=SLOW),
        pytest.param("camera/truncate_share", "report.json", "scenes", marks=SLOW),
        ("camera/tuned", "report.json", "scenes"),
        pytest.param("camera/habit", "report.json", "scenes", marks=SLOW),
        ("drawings", "report.json", "drawings"),
        pytest.param("drawings/never_text_only", "report.json", "drawings", marks=SLOW),
        pytest.param("drawings/language", "report.json", "drawings", marks=SLOW),
    ],
)
def test_every_interval_of_a_report_is_that_of_the_answers(scores, name, benchmark):
    folder, tuned = ROOT / "runs/reference" / scores, ["learning_rate"] if scores.endswith("tuned") else []
    results = collect_results([str(folder)], benchmark, tuned=tuned)
    report = json.loads((folder / name).read_text())
    metrics = list(dict.fromkeys(row["metric"] for row in report["rows"]))
    rows = summarize_results(results, metrics, report["baseline"])
    assert len(rows) == len(report["rows"]) > 0
    for found, stored in zip(rows, report["rows"], strict=True):
        assert (found["metric"], found["condition"], found["objective"], found["seeds"]) == tuple(
            stored[key] for key in ("metric", "condition", "objective", "seeds")
        )
        assert found["values"] == pytest.approx(stored["values"], abs=1e-12)
        for kind in ("mean", "difference", "gain"):
            if stored[kind] is not None:
                for key in ("value", "ci95", "p", "p_holm"):
                    if stored[kind].get(key) is not None:
                        assert found[kind][key] == pytest.approx(stored[kind][key], abs=1e-9), (kind, key)


# of these, pages have no gains over the start
WITHOUT_GAINS = ("objects", "rivals", "clean_texts", "weak_checkpoints", "tuned", "truncate_share", "images_only")


@pytest.mark.parametrize(
    ("report", "page"),
    [
        ("camera/report.json", "new_camera"),
        ("camera/objects/report.json", "new_camera"),
        ("camera/dark/report.json", "limits"),
        ("camera/rivals/report.json", "limits"),
        ("camera/clean_texts/report.json", "limits"),
        ("camera/weak_checkpoints/report.json", "limits"),
        ("camera/learning_rate/report.json", "limits"),
        ("camera/projector/report.json", "limits"),
        ("camera/long/report.json", "limits"),
        ("camera/images_only/report.json", "limits"),
        ("camera/truncate_share/report.json", "limits"),
        ("camera/tuned/report.json", "limits"),
        ("drawings/report.json", "drawings"),
        ("drawings/never_text_only/report.json", "drawings"),
        ("drawings/language/report.json", "drawings"),
    ],
)
def test_a_page_has_every_interval_of_its_report(report, page):
    text = (ROOT / f"docs/studies/{page}.md").read_text()
    for row in json.loads((ROOT / "runs/reference" / report).read_text())["rows"]:
        for kind in ("mean", "difference", *([] if Path(report).parent.name in WITHOUT_GAINS else ["gain"])):
            if row[kind] is not None:
                assert format_interval(row[kind], signed=kind != "mean") in text, (
                    row["objective"],
                    row["metric"],
                    kind,
                )


def test_a_larger_learning_rate_gains_more_than_dependence():
    """Under different conditions, which a report does not compare: paired here by seed and image."""
    runs = [run for name in ("clean_texts", "tuned") for run in collect_results([str(FOLDER / name)], "scenes").runs]
    by_key = {
        (run.summary["objective"], run.config["learning_rate"], run.summary["seed"]): run
        for run in runs
        if run.summary["noise"]["ratio"] == 0
    }

    def subtract(one, other, seeds=range(10, 15)):
        scores = [by_key[*one, seed].scores["scene_accuracy"] for seed in seeds]
        others = [by_key[*other, seed].scores["scene_accuracy"] for seed in seeds]
        return estimate_over_runs(np.array(scores) - np.array(others), [seed % 3 for seed in seeds])

    page = (ROOT / "docs/studies/limits.md").read_text() + (ROOT / "docs/studies/claims.md").read_text()
    assert format_interval(subtract(("ce", 6e-4), ("ce", 3e-4)), signed=True) in page
    assert format_interval(subtract(("dependence", 3e-4), ("ce", 6e-4)), signed=True) in page
    for one, other in ((("dependence", 6e-4), ("ce", 6e-4)), (("ce", 1.2e-3), ("ce", 6e-4))):
        assert format_interval(subtract(one, other, range(10, 13)), signed=True) in page


def test_the_claims_at_tuned_rates_have_the_numbers_of_their_answers():
    """Comparisons with another baseline than CE, and of a part of the seeds, which the report does not print."""
    runs = collect_results([str(FOLDER / "tuned")], "scenes", tuned=["learning_rate"]).runs
    swapped = [run for run in runs if run.summary["noise"]["ratio"] == 0.5]
    by_key = {(run.summary["objective"], run.summary["seed"]): run.scores["scene_accuracy"] for run in swapped}
    page = (ROOT / "docs/studies/claims.md").read_text()
    first = [10, 11, 12]
    for other, seeds in (("ce", first), ("cal", first), ("dependence", first), ("ce", [14, 15, 17, 18, 19])):
        differences = np.array([by_key["posterior", seed] - by_key[other, seed] for seed in seeds])
        assert format_interval(estimate_over_runs(differences, [seed % 3 for seed in seeds]), signed=True) in page


def test_a_mean_over_runs_is_that_of_their_images(results):
    """By hand, from the parts of the answers: fully described images of those that show a scene."""
    shares = [run.parts["captions:score"].sum() / run.parts["captions:n"].sum() for run in results.runs]
    table = results.select("scene_accuracy").set_index("run")["value"]
    assert [table[run.folder] for run in results.runs] == pytest.approx(shares)
    assert {run.parts["captions:n"].sum() for run in results.runs} == {2048}


def test_the_readme_has_the_numbers_of_the_report(results):
    text = " ".join((ROOT / "README.md").read_text().split())
    (ce, posterior) = (
        row
        for row in summarize_results(results, ["scene_accuracy"], "ce")
        if row["noise_ratio"] == 0.5 and row["objective"] in ("ce", "posterior")
    )
    for found, signed in ((ce["mean"], False), (posterior["mean"], False), (posterior["difference"], True)):
        assert format_interval(found, signed) in text
    assert format_interval(posterior["gain"], True) in text
    assert format_interval(results.before_training["scene_accuracy"]) in text


def test_training_on_audited_data_is_as_its_answers_say():
    folder = ROOT / "runs/reference/audit"
    answers, stored = pd.read_parquet(folder / "half_answers.parquet"), json.loads((folder / "half.json").read_text())
    answers["image"] = answers["question"].str.extract(r"^(test-0-\w+-\d+)", expand=False)
    for task in ("captions", "reading"):
        chosen = answers[answers["question"].str.contains(f"-{task}-")]
        means = chosen.groupby(["arm", "seed", "image"], observed=True)["score"].mean().unstack("image")
        for other, base in (("cut", "noisy"), ("weighed", "noisy"), ("posterior", "cut")):
            found = estimate_over_runs((means.loc[other] - means.loc[base]).to_numpy())
            assert found["ci95"] == pytest.approx(stored[task][f"{other} minus {base}"]["ci95"], abs=1e-6)
    page = " ".join((ROOT / "docs/audit.md").read_text().split())
    assert format_interval(stored["captions"]["cut minus noisy"], signed=True) in page


def test_the_mistakes_of_a_habit_are_those_of_the_answers():
    folder = ROOT / "runs/reference/camera/habit"
    answers, stored = pd.read_parquet(folder / "mistakes.parquet"), json.loads((folder / "mistakes.json").read_text())
    page = " ".join((ROOT / "docs/studies/limits.md").read_text().split())
    for texts in ("half", "all"):
        runs = answers[answers["texts"] == texts].astype({"purple": float})
        table = runs.pivot(index=["objective", "seed"], columns="question", values="purple")
        difference = estimate_over_runs((table.loc["posterior"] - table.loc["ce"]).to_numpy())
        assert difference["ci95"] == pytest.approx(stored[texts]["difference"]["ci95"], abs=1e-9)
        assert format_interval(difference, signed=True) in page
        for objective in ("ce", "posterior"):
            assert format_interval(estimate_over_runs(table.loc[objective].to_numpy())) in page


def test_training_on_audited_drawings_is_as_its_answers_say():
    folder = ROOT / "runs/reference/audit"
    answers, stored = (
        pd.read_parquet(folder / "drawings_answers.parquet"),
        json.loads((folder / "drawings.json").read_text()),
    )
    scores = answers.pivot(index=["arm", "seed"], columns="question", values="score").astype(float)
    page = " ".join((ROOT / "docs/audit.md").read_text().split())
    for arm in ("noisy", "cut", "weighed", "posterior"):
        for base in ("before", "noisy"):
            if arm != base:
                start = scores.loc[base].to_numpy()  # one row before training, one for each seed after it
                found = estimate_over_runs(scores.loc[arm].to_numpy() - start)
                assert found["ci95"] == pytest.approx(stored["name_exact"][f"{arm} minus {base}"]["ci95"], abs=1e-9)
                assert format_interval(found, signed=True) in page
