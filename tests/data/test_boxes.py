"""Boxes of the padded square become those of the image, by hand and there and back."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageChops

from cal_cli.data.boxes import convert_boxes, fit_to_image, fit_to_square, replace_boxes
from cal_cli.data.images import open_image
from tests.cal import cal


def paint(size, box, path):
    """A white image with a red box, in pixels."""
    picture = Image.new("RGB", size, "white")
    picture.paste((255, 0, 0), box)
    picture.save(path)
    return picture


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
    """The padded picture's box, as LLaVA pads it, holds the same pixels as the converted box of the picture."""
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
