"""`cal data-check` on a folder that holds one of each kind of bad sample, and training on what it leaves."""

import json

import pytest

from tests.cal import cal
from tests.data.messy import write_lines, write_messy

LIMITS = ["max_length=80", "max_pixels=10000000"]


@pytest.mark.parametrize("workers", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_every_bad_sample_is_named_and_training_runs_on_the_rest(tmp_path, workers):
    entries, told = write_messy(tmp_path)
    write_lines(entries, tmp_path / "data.jsonl")
    words = ["data.path=data.jsonl", "data.image_folder=images", *LIMITS, f"workers={workers}"]
    output = cal("data-check", *words, "hydra.run.dir=checked", folder=tmp_path).stdout
    report = json.loads((tmp_path / "checked/report.json").read_text())
    bad = [json.loads(line) for line in (tmp_path / "checked/bad_samples.jsonl").read_text().splitlines()]
    found = {one["id"]: one["problem"] for one in bad}
    assert found.keys() == told.keys() | {"without an id"}
    assert all(problem in found[name] for name, problem in told.items())
    assert "not valid JSON" in found["without an id"]
    assert (report["samples"], report["good"], report["bad"]) == (len(entries) + 1, 31, len(told) + 1)
    assert report["with_image"] == 30 and sum(report["problems"].values()) == report["bad"]
    clean = json.loads((tmp_path / "checked/clean.json").read_text())
    assert [entry["id"] for entry in clean] == [entry["id"] for entry in entries if entry["id"] not in told]
    assert f"{report['good']} good, {report['bad']} bad" in output
    # each good picture is 9 tokens of the tiny model; the start, the roles and the words come on top
    assert report["tokens"]["p100"] == report["tokens"]["p50"] > 9 + 5
    trained = cal(
        "train",
        "data=llava_json",
        "data.path=checked/clean.json",
        "data.image_folder=/",
        "max_steps=2",
        "batch_size=8",
        folder=tmp_path,
    )
    assert "completed" in trained.stdout


def test_a_whole_file_of_good_samples_is_told_so(tmp_path):
    entries, told = write_messy(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps([entry for entry in entries if entry["id"] not in told]))
    words = ["data.path=data.json", "data.image_folder=images", "workers=0", "hydra.run.dir=checked"]
    assert "31 good, 0 bad" in cal("data-check", *words, folder=tmp_path).stdout
    assert (tmp_path / "checked/bad_samples.jsonl").read_text() == ""


def test_wrong_values_are_told(tmp_path):
    (tmp_path / "data.json").write_text("[")
    for words, said in (
        (["data.path=none.json"], "there is no such file"),
        (["data.path=data.json"], "not valid JSON"),
        (["data.path=data.json", "max_pixels=0"], "max_pixels=0"),
        (["data=scenes"], "has no file to check"),
    ):
        result = cal("data-check", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr


def test_training_leaves_out_few_bad_samples_and_stops_at_too_many(tmp_path):
    entries, told = write_messy(tmp_path)
    (tmp_path / "data.json").write_text(json.dumps(entries))
    words = ["train", "data=llava_json", "data.path=data.json", "data.image_folder=images", "batch_size=8", "epochs=1"]
    words += ["max_length=80", "save_steps=1"]
    result = cal(*words, folder=tmp_path, check=False)
    assert result.returncode == 2 and "cal data-check lists all bad samples" in result.stderr
    many = cal(*words, "data.max_bad_fraction=0.17", "name=few", folder=tmp_path, check=False)  # 7 of 42: not enough
    assert many.returncode == 2 and "more than data.max_bad_fraction allows (7)" in many.stderr
    (run,) = (path.parent for path in tmp_path.glob("runs/train/few/*/summary.json"))
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    trained = cal(*words, "data.max_bad_fraction=0.5", "name=all", folder=tmp_path)
    (run,) = (path.parent for path in tmp_path.glob("runs/train/all/*/summary.json"))
    summary = json.loads((run / "summary.json").read_text())
    named = {json.loads(line)["id"] for line in (run / "bad_samples.jsonl").read_text().splitlines()}
    assert named == told.keys() - {"large"}  # training has no limit of its own but Pillow's
    assert summary["bad_samples"] == len(named) and summary["status"] == "completed"
    assert "left out: sample" in trained.stdout
