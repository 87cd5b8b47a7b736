"""`cal data-check` on a folder that holds one of each kind of bad sample, and training on what it leaves."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from cal_cli.data.check import convert_boxes, find_margins, fit_to_image, replace_boxes
from cal_cli.data.images import open_image
from tests.cal import cal
from tests.data.messy import write_lines, write_messy

LIMITS = ["max_length=80", "max_pixels=10000000"]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
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
    good = [entry for entry in entries if entry["id"] not in told]
    good[0]["conversations"][-1]["value"] += " was <s>20</s> now 10"
    good[1]["conversations"][-1]["value"] += " </s>"
    (tmp_path / "data.json").write_text(json.dumps(good))
    words = ["data.path=data.json", "data.image_folder=images", "workers=0", "hydra.run.dir=checked"]
    printed = " ".join(cal("data-check", *words, folder=tmp_path).stdout.split())
    assert "31 good, 0 bad" in printed
    assert "2 hold </s> in a text, which the model reads as its special token" in printed
    assert "1 holds <s> in a text" in printed
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


def paint(size, box, path):
    """A white image with a red box, in pixels."""
    picture = Image.new("RGB", size, "white")
    picture.paste((255, 0, 0), box)
    picture.save(path)
    return picture


def fit_to_square(box, size):
    """A box of the image as one of the padded square."""
    margins = find_margins(size) * 2
    return [(one * length + m) / max(size) for one, m, length in zip(box, margins, size * 2, strict=True)]


def entry_of(text):
    return {"id": "a", "image": "a.png", "conversations": [{"from": "human", "value": text}]}


@pytest.mark.parametrize(
    ("size", "padded", "expected"),
    [
        ((100, 50), "[0.2, 0.25, 0.6, 0.5]", "[0.2, 0.0, 0.6, 0.5]"),  # 25 rows of padding above and below
        ((50, 100), "[0.25, 0.2, 0.5, 0.6]", "[0.0, 0.2, 0.5, 0.6]"),
        ((100, 50), "[0.0, 0.5, 1.0, 0.75]", "[0.0, 0.5, 1.0, 1.0]"),
        ((100, 50), "[0, 0, 1, 1]", "[0.0, 0.0, 1.0, 1.0]"),  # padding is cut off
        ((80, 80), "[0.13, 0.2, 0.5, 0.613]", "[0.13, 0.2, 0.5, 0.613]"),
        ((100, 50), "[0.5, 0.3, 0.2, 0.6]", "[0.5, 0.3, 0.2, 0.6]"),  # no box
        ((100, 50), "[0.5, 0.3, 0.6]", "[0.5, 0.3, 0.6]"),
        ((100, 50), "[1.5, 0.3, 2, 3]", "[1.5, 0.3, 2, 3]"),
    ],
)
def test_boxes_by_hand(size, padded, expected):
    entry = convert_boxes(entry_of(f"<image>\nwhat is in {padded}?"), size)
    assert entry["conversations"][0]["value"] == f"<image>\nwhat is in {expected}?"


@given(st.integers(1, 2000), st.integers(1, 2000), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_there_and_back(width, height, numbers):
    box, size = [*sorted(numbers[::2]), *sorted(numbers[1::2])], (width, height)
    box = [box[0], box[2], box[1], box[3]]
    square = fit_to_square(box, size)
    assert all(0 <= one <= 1 for one in square)
    assert fit_to_image(square, size) == pytest.approx(box, abs=1e-6)
    text = "a [" + ", ".join(f"{one:.3f}" for one in box) + "] b"
    found = json.loads(replace_boxes(text, size, fit_to_square)[2:-2])
    assert found == pytest.approx(square, abs=2e-3)


def test_data_check_writes_boxes_of_the_image(tmp_path):
    """The padded image's box, as LLaVA pads it, holds the same pixels as the converted box of the image."""
    size, box = (120, 60), (30, 12, 90, 48)
    picture = paint(size, box, tmp_path / "a.png")
    square = Image.new("RGB", (120, 120), "white")
    square.paste(picture, (0, 30))
    red = ImageChops.difference(square, Image.new("RGB", (120, 120), "white")).getbbox()
    text = str([n / 120 for n in red])
    turns = [{"from": "human", "value": "<image>\nwhere is the red box?"}, {"from": "gpt", "value": text}]
    (tmp_path / "data.json").write_text(json.dumps([{"id": "a", "image": "a.png", "conversations": turns}]))
    told = cal("data-check", "data.path=data.json", "boxes=image", "workers=0", folder=tmp_path).stdout
    assert "the boxes of 1 sample now refer to its image" in " ".join(told.split())
    (clean,) = tmp_path.glob("runs/data-check/*/clean.json")
    found = json.loads(json.loads(clean.read_text())[0]["conversations"][1]["value"])
    assert found == pytest.approx([box[0] / 120, box[1] / 60, box[2] / 120, box[3] / 60], abs=0.006)
    shown = open_image(tmp_path / "a.png")
    left, top, right, bottom = (round(n * length) for n, length in zip(found, shown.size * 2, strict=True))
    assert shown.crop((left, top, right, bottom)).getcolors() == [(60 * 36, (255, 0, 0))]
    for words, said in ((["boxes=square"], "allowed are null and image"), (["data=table"], "needs data in JSON")):
        result = cal("data-check", "data.path=data.json", "boxes=image", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr
