"""What is not understood is a named bad sample, never dropped and never a traceback."""

import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cal_cli.data.chat_formats import make_turns
from cal_cli.data.hf_datasets import load_conversations
from cal_cli.data.llava_json import find_problem, load_llava_json
from cal_cli.runtime.errors import InputError

TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a disc"}]
SHOWN = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a disc"}]
ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=()), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["id", "image", "conversations", "from", "value", "role", "content", "type", "text", "user"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@settings(max_examples=1000)
@given(ANYTHING, st.integers(0, 2))
def test_any_json_is_an_entry_or_a_sentence(value, images):
    for entry in (value, {"id": "a", "conversations": make_turns(value, images)}):
        problem = find_problem(entry)
        if problem is None:
            assert all(turn["value"].encode().decode() == turn["value"] for turn in entry["conversations"])
        else:
            assert len(problem) < 400 and problem.encode("utf-8", "backslashreplace")


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_byte_order_mark_is_not_text(suffix, tmp_path):
    entry = {"id": 7, "conversations": TURNS}
    text = json.dumps([entry]) if suffix == "json" else json.dumps(entry) + "\n"
    (tmp_path / f"a.{suffix}").write_text(text, encoding="utf-8-sig")
    (read,) = load_llava_json(str(tmp_path / f"a.{suffix}")).entries
    assert read == {"id": "7", "conversations": TURNS}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"conversations": [{"from": "human", "value": "\ud83d"}, TURNS[1]]}, "half of a surrogate pair"),
        ({"image": "data:image/png;base64," + "iVBOR" * 5000}, "iVBOR"),
        ({"image": "a\0.png"}, "is not in"),
        ({"image": "/etc/hostname"}, "leaves the folder"),
        ({"image": "linked/../../a.png"}, "leaves the folder"),
    ],
)
def test_a_bad_entry_is_named_in_one_sentence(change, problem, tmp_path):
    (tmp_path / "images").mkdir()
    entry = {"id": "a", "conversations": SHOWN if "image" in change else TURNS} | change
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=problem) as caught:
        load_llava_json(str(tmp_path / "a.json"), str(tmp_path / "images"))
    assert len(str(caught.value)) < 700 and "\0" not in str(caught.value)


def test_links_below_the_image_folder_are_followed(tmp_path):
    for name in ("images", "elsewhere"):
        (tmp_path / name).mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "elsewhere/a.png")
    (tmp_path / "images/coco").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a.json").write_text(json.dumps([{"id": "a", "image": "coco/a.png", "conversations": SHOWN}]))
    data = load_llava_json(str(tmp_path / "a.json"), str(tmp_path / "elsewhere/../images"))
    assert data[0]["image"].getpixel((0, 0)) == (255, 0, 0)


def load_rows(rows, path):
    datasets.Dataset.from_list(rows).to_parquet(path)
    return load_conversations(str(path))


def test_a_column_of_json_text_is_parsed(tmp_path):
    read = load_rows([{"id": "a", "conversations": json.dumps(TURNS)}], tmp_path / "a.parquet")
    assert read[0]["conversations"] == TURNS
    with pytest.raises(InputError, match="'conversations' must be a list"):
        load_rows([{"id": "a", "conversations": "a red disc"}], tmp_path / "b.parquet")


@pytest.mark.parametrize("kind", ["image_url", "video"])
def test_a_message_with_an_unknown_part_is_refused_by_its_name(kind, tmp_path):
    parts = [{"type": "text", "text": "what?"}, {"type": kind, kind: {"url": "data:image/png;base64,iVBOR"}}]
    answer = [{"type": "text", "text": "a disc"}]
    row = {"id": "a", "messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": answer}]}
    with pytest.raises(InputError, match=f"parts of type .*{kind}.*; allowed are text and image"):
        load_rows([row], tmp_path / "a.parquet")
    row["messages"][0]["content"] = None
    with pytest.raises(InputError, match="a turn must be"):
        load_rows([row], tmp_path / "b.parquet")


def test_a_missing_picture_is_a_bad_sample(tmp_path):
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "text": datasets.Value("string"),
            "images": [{"bytes": datasets.Value("binary"), "path": datasets.Value("string")}],
        }
    )
    for number, pictures in enumerate(([None], [{"bytes": None, "path": None}])):
        path = tmp_path / f"{number}.parquet"
        rows = datasets.Dataset.from_list([{"id": "a", "text": "a disc", "images": pictures}], features=features)
        rows.to_parquet(path)
        with pytest.raises(InputError, match="its image is missing"):
            load_conversations(str(path))[0]
