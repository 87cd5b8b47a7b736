"""LLaVA JSON: the world written and read back is the world; a malformed entry is named."""

import json

import pytest
from PIL import Image

from cal_cli.data.llava_json import llava_json
from cal_cli.errors import InputError

GOOD = {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}


def write(folder, content):
    path = folder / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def test_entries_and_pictures_are_read(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "p.png")
    shown = {
        **GOOD,
        "image": "p.png",
        "conversations": [{"from": "human", "value": "<image>x"}, GOOD["conversations"][1]],
    }
    data = llava_json(write(tmp_path, [GOOD, shown]))
    assert data[0] == {**GOOD, "image": None}
    assert data[1]["image"].size == (5, 4)
    assert data[1]["image"].getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("text", "entry 1 .without an id.: must be an object"),
        ({"id": "b"}, "entry 1 .'b'.: has no 'conversations'"),
        ({"conversations": GOOD["conversations"]}, "entry 1 .without an id.: has no 'id'"),
        ({"id": "b", "conversations": []}, "at least one"),
        ({"id": "b", "conversations": ["hi"]}, "a turn must be"),
        ({"id": "b", "conversations": [{"from": "bot", "value": "x"}]}, "a turn must be"),
        ({"id": "b", "conversations": GOOD["conversations"][::-1]}, "human, gpt"),
        ({"id": "b", "conversations": GOOD["conversations"][:1]}, "human, gpt"),
        ({**GOOD, "id": "b", "image": "p.png"}, "stands in its turns 0 times"),
        ({**GOOD, "id": "b", "image": ["p.png"]}, "must be one file name"),
        (
            {
                "id": "b",
                "image": "p.png",
                "conversations": [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": "y"}],
            },
            "its image p.png is not in",
        ),
        (
            {"id": "b", "conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<image>"}]},
            "human turn",
        ),
    ],
)
def test_a_malformed_entry_is_named(tmp_path, entry, named):
    with pytest.raises(InputError, match=named):
        llava_json(write(tmp_path, [GOOD, entry]))


@pytest.mark.parametrize(("content", "named"), [("{", "not valid JSON"), ({}, "list"), ([], "at least one sample")])
def test_a_malformed_file_is_named(tmp_path, content, named):
    with pytest.raises(InputError, match=named):
        llava_json(write(tmp_path, content))


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        llava_json(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="no such folder"):
        llava_json(write(tmp_path, [GOOD]), str(tmp_path / "none"))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "p.png").write_text("not a picture")
    shown = {
        **GOOD,
        "image": "p.png",
        "conversations": [{"from": "human", "value": "<image>x"}, GOOD["conversations"][1]],
    }
    data = llava_json(write(tmp_path, [shown]))
    with pytest.raises(InputError, match=r"p\.png: cannot be read as an image"):
        data[0]
