"""What is not understood is a named bad sample, never dropped and never a traceback."""

import base64
import io
import json

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cal_cli.data.llava_json import load_llava_json
from cal_cli.data.messages import make_turns
from cal_cli.data.tables import load_conversations
from cal_cli.data.validate import find_problem, mark_images
from cal_cli.runtime.errors import InputError
from tests.cal import cal

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
    turns = make_turns(value)
    mark_images(turns, images)
    for entry in (value, {"id": "a", "conversations": turns}):
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


@pytest.mark.parametrize("kind", ["input_audio", "video"])
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


def png(colour):
    """The bytes of a PNG of one colour."""
    with io.BytesIO() as file:
        Image.new("RGB", (4, 4), colour).save(file, "PNG")
        return file.getvalue()


def show(*references):
    """Chat messages in OpenAI's format that carry images, or mark their places."""
    parts = [{"type": "text", "text": "what?"}, *references]
    return [{"role": "user", "content": parts}, {"role": "assistant", "content": "a disc"}]


def link(url):
    return {"type": "image_url", "image_url": {"url": url}}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_images_within_messages_are_read(tmp_path):
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "a.png")
    url = "data:image/png;base64," + base64.b64encode(png("red")).decode()
    messages = [
        show(link(url)),
        show(link("a.png"), {"type": "image", "url": url}),
        show({"type": "image", "path": "a.png"}),
    ]
    data = load_conversations(write_rows(tmp_path / "rows.jsonl", [{"messages": one} for one in messages]))
    assert [entry["conversations"][0]["value"].count("<image>") for entry in data.entries] == [1, 2, 1]
    red, blue = (255, 0, 0), (0, 0, 255)
    assert data[0]["image"].getpixel((0, 0)) == red and data[2]["image"].getpixel((0, 0)) == blue
    assert [image.getpixel((0, 0)) for image in data[1]["image"]] == [blue, red]


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        (link("https://example.com/a.png"), "is at https://example.com/a.png: only data URLs and files are read"),
        (link("data:image/png;base64,!!!"), "a data URL that is not base64"),
        (link("data:image/png;base64,aGk="), "cannot be read as an image"),
        (link("../a.png"), "leaves the folder"),
        (link("/etc/hostname"), "leaves the folder"),
        (link("missing.png"), "is not in"),
    ],
)
def test_an_image_within_a_message_that_cannot_be_read_is_a_bad_sample(reference, problem, tmp_path):
    data = load_conversations(write_rows(tmp_path / "rows.jsonl", [{"messages": show(reference)}]))
    with pytest.raises(InputError, match=problem) as caught:
        data[0]
    assert len(str(caught.value)) < 500


def test_images_in_a_column_and_in_messages_are_not_mixed_up(tmp_path):
    rows = [{"messages": show(link("a.png")), "image": "b.png"}]
    with pytest.raises(InputError, match="its messages carry images, and so does the column image"):
        load_conversations(write_rows(tmp_path / "rows.jsonl", rows))


@pytest.mark.parametrize("system", [[], [{"from": "system", "value": "Be kind."}]])
def test_a_first_answer_is_left_out_and_counted(system, tmp_path):
    turns = [*system, {"from": "gpt", "value": "hello"}, *TURNS]
    entries = [{"id": "a", "conversations": turns}, {"id": "b", "conversations": TURNS}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    path = write_rows(tmp_path / "rows.jsonl", [{"conversations": entry["conversations"]} for entry in entries])
    for data in (load_llava_json(str(tmp_path / "a.json")), load_conversations(path)):
        assert [entry["conversations"] for entry in data.entries] == [[*system, *TURNS], TURNS]
    for number, words in enumerate((["data=llava_json", "data.path=a.json"], ["data=table", "data.path=rows.jsonl"])):
        folder = f"runs/check/{number}"
        told = cal("data-check", *words, "workers=0", f"hydra.run.dir={folder}", folder=tmp_path).stdout
        assert "1 begin with an answer, which training leaves out, as LLaVA does" in " ".join(told.split())
    (first, _) = json.loads((tmp_path / "runs/check/0/clean.json").read_text())
    assert first["conversations"] == [*system, *TURNS]


def test_nothing_but_an_answer_is_bad(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": "a", "conversations": TURNS[1:]}]))
    with pytest.raises(InputError, match="at least one turn"):
        load_llava_json(str(tmp_path / "a.json"))


def test_a_list_in_a_file_of_lines_is_a_list(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps([{"id": "a", "conversations": TURNS}] * 2, indent=1))
    assert len(load_llava_json(str(tmp_path / "a.jsonl")).entries) == 2
