"""`cal inspect` as typed: pages of one and two checkpoints, and numbers that `cal report` compares."""

import json
import shutil

from cal_cli.toy.model import BASE
from tests.cal import cal

CAPTIONS = ["data.families=[captions]", "data.split=test", "data.text_only_share=0"]


def test_pages_of_two_checkpoints(tmp_path):
    shutil.copytree(BASE, tmp_path / "other")
    for view in ("attention", "patches"):
        told = cal("inspect", f"view={view}", "checkpoint=[tiny,other]", "samples=2", *CAPTIONS, folder=tmp_path).stdout
        assert f"runs/inspect/{view}.html: 2 samples" in told
        page = (tmp_path / f"runs/inspect/{view}.html").read_text()
        assert page.count("<article>") == 2 and page.count("<figcaption>tiny") == page.count("<figcaption>other") == 2


def test_figures_for_print_show_chosen_words(tmp_path):
    words = ["view=attention", "samples=1", "format=svg", *CAPTIONS]
    told = cal("inspect", *words, folder=tmp_path).stdout
    assert "runs/inspect/attention.svg" in told and "runs/inspect/relevancy.svg" in told
    drawn = (tmp_path / "runs/inspect/attention.svg").read_text()
    assert drawn.count("<image") == 1 + 6  # the image alone, and below the map of each word
    alone = cal("inspect", "show=[red]", folder=tmp_path, check=False)
    assert alone.returncode == 2 and "give format=pdf, png or svg too" in alone.stderr
    wrong = cal("inspect", *words, "show=[cathedral]", folder=tmp_path, check=False)
    assert wrong.returncode == 2 and "has none of the words cathedral; it has" in wrong.stderr


def test_numbers_of_runs_are_reported_with_intervals(tmp_path):
    for objective in ("ce", "cal"):
        words = ["data.n=48", "batch_size=16", f"objective={objective}", "name=t"]
        cal("train", *words, folder=tmp_path)
    look = ["inspect", "view=objects", "checkpoint=runs/train/t", "samples=5", *CAPTIONS]
    told = cal(*look, folder=tmp_path).stdout
    assert "attention inside" in told and "projected word accuracy" in told
    (path,) = tmp_path.glob("runs/train/t/*objective-cal/eval/objects/results.json")
    results = json.loads(path.read_text())
    assert results["pictures"] == 5 and 0 < results["metrics"]["attention_inside"]["value"] < 1
    before = path.stat().st_mtime_ns
    cal(*look, folder=tmp_path)
    assert path.stat().st_mtime_ns == before
    cal("report", "runs=runs/train/t", "results=objects", "metrics=[attention_inside]", "output=r", folder=tmp_path)
    (pair,) = json.loads((tmp_path / "r/report.json").read_text())["same_questions"]
    difference = pair["differences"]["attention_inside"]
    assert difference["ci95"][0] <= difference["value"] <= difference["ci95"][1]
