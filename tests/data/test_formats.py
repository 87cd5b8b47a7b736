"""Files of each format as tables: every value as it is written, and no image left out without a word."""

import io
import json
import re
import tarfile

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cal_cli.data.formats import find_files, load_table, read_json
from cal_cli.data.llava_json import load_llava_json
from cal_cli.data.tables import load_conversations
from cal_cli.runtime.errors import InputError
from tests.cal import cal

TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a disc"}]


def png(number=0, kind="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            content = content.encode() if isinstance(content, str) else content
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def pairs(numbers, image="png", kind="PNG"):
    return [
        member for n in numbers for member in ((f"{n:05d}.{image}", png(n, kind)), (f"{n:05d}.txt", f"caption {n}"))
    ]


def count_shown(data):
    return sum("image" in entry for entry in data.entries)


def test_metadata_beside_a_shard_are_not_the_data(tmp_path):
    write_tar(tmp_path / "00000.tar", pairs(range(4)))
    pq.write_table(pa.table({"caption": ["a"] * 6, "url": ["http://x/1.jpg"] * 6}), tmp_path / "00000.parquet")
    (tmp_path / "00000_stats.json").write_text('{"count": 6}')
    (tmp_path / "._00000.tar").write_bytes(b"resource fork")
    data = load_conversations(str(tmp_path))
    assert len(data) == count_shown(data) == 4 and not data.notes
    assert [data[n]["image"].getpixel((0, 0))[0] for n in range(4)] == [0, 1, 2, 3]


@pytest.mark.parametrize("other", ["extra.parquet", "extra.jsonl", "below/extra.arrow"])
def test_several_kinds_of_files_are_refused(other, tmp_path):
    write_tar(tmp_path / "00000.tar", pairs(range(2)))
    (tmp_path / other).parent.mkdir(exist_ok=True)
    (tmp_path / other).write_bytes(b"")
    with pytest.raises(InputError, match=r"several kinds \(.*00000\.tar.*\), and only one"):
        load_conversations(str(tmp_path))


def test_descriptions_of_a_data_set_are_not_rows(tmp_path):
    datasets.Dataset.from_list([{"text": "a"}]).save_to_disk(str(tmp_path / "saved"))
    assert {file.suffix for file in find_files(str(tmp_path / "saved"))} == {".arrow"}


@pytest.mark.parametrize("names", [("jpg", "png"), ("png", "JPG"), ("webp", "jpeg"), ("gif", "bmp")])
def test_each_image_of_a_shard_is_read_whatever_its_format(names, tmp_path):
    kinds = {"jpg": "JPEG", "jpeg": "JPEG"}
    members = [m for n in range(12) for m in pairs([n], names[n // 8], kinds.get(names[n // 8].lower(), names[n // 8]))]
    data = load_conversations(str(write_tar(tmp_path / "a.tar", members)))
    assert count_shown(data) == 12 and not data.notes
    assert all(data[n]["image"].size == (8, 8) for n in range(12))


def test_samples_without_their_image_are_counted(tmp_path):
    members = [member for member in pairs(range(16)) if not (member[0].endswith("png") and int(member[0][:5]) % 2)]
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/a.tar", members)
    data = load_conversations(str(tmp_path / "shards"))
    (note,) = data.notes
    assert count_shown(data) == 8 and "8 of 16 rows have no image" in note and "row 1" in note
    told = cal("noise-inject", "data=table", "data.path=shards", "ratio=0", "output=out", folder=tmp_path)
    assert "8 of 16 rows have no image" in " ".join(told.stdout.split())
    told = cal("data-check", "data=table", "data.path=shards", "workers=0", folder=tmp_path)
    assert "8 of 16 rows have no image" in " ".join(told.stdout.split())


def test_rows_that_mean_to_be_text_alone_are_not_counted(tmp_path):
    shown = [{"from": "human", "value": "<image>\nwhat?"}, TURNS[1]]
    rows = [{"image": {"bytes": png(), "path": None}, "conversations": shown}, {"image": None, "conversations": TURNS}]
    pq.write_table(pa.Table.from_pylist(rows * 3), tmp_path / "a.parquet")
    data = load_conversations(str(tmp_path))
    assert count_shown(data) == 3 and not data.notes
    pq.write_table(pa.Table.from_pylist([{"conversations": TURNS}] * 3), tmp_path / "a.parquet")
    assert not load_conversations(str(tmp_path)).notes


def test_scattered_files_of_a_sample_are_refused(tmp_path):
    members = sorted(pairs(range(4)), key=lambda member: member[0][-3:])
    write_tar(tmp_path / "a.tar", members)
    with pytest.raises(InputError, match=r"sample 00000 are not next to each other in a\.tar"):
        load_conversations(str(tmp_path))


def test_a_list_of_images_is_the_same_in_json_and_in_a_table(tmp_path):
    (tmp_path / "a.png").write_bytes(png(7))
    for images in (["a.png"], ["a.png", "a.png"], "a.png", [], None):
        entries = [{"id": "0", "images": images, "conversations": TURNS}] * 8
        (tmp_path / "a.json").write_text(json.dumps(entries))
        found, table = load_llava_json(str(tmp_path / "a.json")), load_conversations(str(tmp_path / "a.json"))
        assert count_shown(found) == count_shown(table) == (8 if images else 0)
        assert found.entries[3]["conversations"] == table.entries[3]["conversations"]


@pytest.mark.parametrize("key", ["img", "image_path", "picture"])
def test_a_key_that_looks_like_an_image_is_refused(key, tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", key: "a.png", "conversations": TURNS}]))
    with pytest.raises(InputError, match=f"no 'image', but '{key}'"):
        load_llava_json(str(tmp_path / "a.json"))
    with pytest.raises(InputError, match=f"its column {key} names images .* rename it to image"):
        load_conversations(str(tmp_path / "a.json"))


def test_columns_of_images(tmp_path):
    image = {"bytes": png(3), "path": None}
    for columns, shown, note in (
        (["photo"], 2, None),  # the only one with images is the one
        (["Image"], 2, None),
        (["image", "mask"], 2, "the images of mask are not read"),
        (["image", "images"], 2, "2 rows have images in several of the columns image, images"),
    ):
        rows = [{name: image for name in columns} | {"caption": "a"}] * 2
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
        data = load_conversations(str(tmp_path / "a.parquet"))
        assert count_shown(data) == shown and data[1]["image"].getpixel((0, 0))[0] == 3
        assert [note in found for found in data.notes] == ([True] if note else [])
    pq.write_table(pa.Table.from_pylist([{"left": image, "right": image, "caption": "a"}]), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="left, right all hold images: rename"):
        load_conversations(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(("images", "kind"), [([7, 8], "int64"), ([[1.0, 2.0], [3.0]], "list<(item|element): double>")])
def test_a_column_of_numbers_is_no_column_of_images(images, kind, tmp_path):
    pq.write_table(pa.table({"image": images, "caption": ["a", "b"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=f"its column image holds {kind}, not images: give"):
        load_conversations(str(tmp_path / "a.parquet"))
    rows = [{"image": image, "caption": "a"} for image in images]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"its column image (holds|must hold)"):
        load_conversations(str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize("key", ["video", "videos", "audio_path"])
def test_videos_are_not_read_as_text_alone(key, tmp_path):
    """A sample with a video is no text: it is bad in LLaVA's JSON, and a table says which columns it does not read."""
    turns = [{"from": "human", "value": "<video>\nwhat?"}, TURNS[1]]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", key: "a.mp4", "conversations": turns}]))
    with pytest.raises(InputError, match=f"has '{key}', which is not read: only images are"):
        load_llava_json(str(tmp_path / "a.json"))
    pq.write_table(pa.table({key: ["a.mp4", "b.mp4"], "caption": ["a", "b"]}), tmp_path / "a.parquet")
    data = load_conversations(str(tmp_path / "a.parquet"))
    assert any(f"the column {key} is not read: only images are" in note for note in data.notes)


def test_a_file_without_rows_is_refused(tmp_path):
    pq.write_table(pa.table({"caption": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="has no rows"):
        load_conversations(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize("nothing", [None, ""])
def test_no_image_by_name_is_text_only(nothing, tmp_path):
    """Also under the key `image`; with a mark in the text it is a sample that has lost its image."""
    asked = {"from": "human", "value": "<image>\nwhat?"}
    entries = [{"id": "0", "image": nothing, "conversations": TURNS}]
    entries += [{"id": "1", "image": nothing, "conversations": [asked, TURNS[1]]}]
    (tmp_path / "a.json").write_text(json.dumps(entries))
    data = load_llava_json(str(tmp_path / "a.json"), max_bad_fraction=0.5)
    assert [entry["id"] for entry in data.entries] == ["0"] and count_shown(data) == 0
    assert data.bad[0].problem == "it has 0 images but its turns contain '<image>' 1 times"


def test_contrasting_without_images_is_refused(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": str(n), "conversations": TURNS} for n in range(8)]))
    words = ["train", "data=llava_json", f"data.path={tmp_path / 'a.json'}", "max_steps=1", "batch_size=2"]
    refused = cal(*words, "objective=cal", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "none of the 8 samples shows an image" in refused.stderr


ROWS = [
    {"id": 7, "when": "2020-01-01", "answer": 5, "boxes": [[0.125, 1]], "text": "2021-05-06"},
    {"id": "007", "when": "12:30:00", "answer": 2.5, "boxes": None, "text": "123"},
    {"id": "2020-01-01T00:00:00Z", "when": None, "answer": "5", "other": {"a": 1}, "text": "null"},
    {"id": 12345678901234567890, "when": "x", "answer": 1e-12, "other": {"b": [True, None]}, "text": "é😀"},
]


@pytest.mark.parametrize("form", ["lines", "list", "lines.json", "wrapped"])
def test_json_values_stay_as_they_are_written(form, tmp_path):
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    text = {"list": json.dumps(ROWS), "wrapped": json.dumps({"info": {"v": 1}, "data": ROWS})}.get(form, lines)
    path = tmp_path / ("a.jsonl" if form == "lines" else "a.json")
    path.write_text(text)
    table = load_table(str(path), None, "train")
    names = {name for row in ROWS for name in row}
    assert list(table) == [dict.fromkeys(names) | row for row in ROWS]
    assert table[1]["answer"] == 2.5 and type(table[0]["answer"]) is int


@pytest.mark.parametrize(
    ("whole", "rows"),
    [
        ([], 0),
        ({"question": "what?", "answers": ["a", "b"]}, 1),  # a row, not a list of texts
        ({"id": "a", "texts": [{"user": "what?", "assistant": "a ring"}]}, 1),
        ({"data": [{"a": 1}, {"a": 2}], "splits": ["train"]}, 2),
    ],
)
def test_an_object_is_a_row_unless_it_wraps_rows(whole, rows, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(whole))
    found = list(read_json(tmp_path / "a.json"))
    assert len(found) == rows and (rows != 1 or found == [whole])


@pytest.mark.parametrize("images", [5, 1.5, {"a": 1}, [{"path": "a.png"}], True])
def test_images_that_are_no_names_are_a_bad_sample(images, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "images": images, "conversations": TURNS}]))
    with pytest.raises(InputError, match="'image' must be a file name or a list of file names"):
        load_llava_json(str(tmp_path / "a.json"))


def test_ids_are_those_of_the_file(tmp_path):
    rows = [{"id": name, "conversations": TURNS} for name in (0, "007", 2.5, "2020-01-01", "")]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    found = load_conversations(str(tmp_path / "a.json")).entries
    assert [entry["id"] for entry in found] == ["0", "007", "2.5", "2020-01-01", "row 4"]


def test_a_changed_file_is_read_again(tmp_path):
    path = tmp_path / "a.json"
    for text in ("one", "another"):
        path.write_text(json.dumps([{"text": text}]))
        assert load_table(str(path), None, "train")[0] == {"text": text}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"a": [{"x": 1}], "b": [{"y": 1}]}', "several lists: a, b"),
        ('[{"a": 1}, [2]]', "row 1 must be an object, not"),
        ('{"a": 1}\n{"a": \n', "row 1 is not valid JSON"),
        ("[1, 2", "cannot be read: Expecting"),
        ('"a text"', "must hold rows, not 'a text'"),
        ("7", "must hold rows, not 7"),
        ("[]", "has no rows"),
    ],
)
def test_other_json_is_refused(text, problem, tmp_path):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=problem):
        load_table(str(tmp_path / "a.json"), None, "train")


@pytest.mark.parametrize("caption", [["a ring", "a disc"], {"en": "a ring"}, None])
def test_a_caption_that_is_no_text_is_named(caption, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([{"caption": "a ring"}, {"caption": caption}]))
    with pytest.raises(InputError, match="row 1: its caption must be a text, not"):
        load_conversations(str(tmp_path / "a.json"))


def test_texts_that_datasets_reads_as_dates_are_refused(tmp_path, monkeypatch):
    """A data set of the hub in JSON is read by `datasets`, which changes such texts; here its builder reads a file."""
    rows = [{"caption": "2024-01-01", "image": "a.png"}, {"caption": "2024-01-02", "image": "b.png"}]
    (tmp_path / "hub.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    built = datasets.load_dataset("json", data_files=str(tmp_path / "hub.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert "timestamp" in str(built["train"].data.schema)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, *_, **__: built["train"])
    with pytest.raises(InputError, match=r"someone/dated: `datasets` reads some of its texts as dates.*hf download"):
        load_table("someone/dated", None, "train")


@pytest.mark.parametrize("mark", ["<image_placeholder>", "<ImageHere>", "<image 1>", "<Image>", "<|image_pad|>"])
def test_a_place_that_is_marked_in_another_way_is_named(mark, tmp_path):
    """It would stay in the text as words, beside an `<image>` that nobody wrote."""
    (tmp_path / "a.png").write_bytes(png())
    turns = [{"from": "human", "value": f"{mark}\nwhat?"}, TURNS[1]]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "images": ["a.png"], "conversations": turns}]))
    for load in (load_llava_json, load_conversations):
        with pytest.raises(InputError, match=re.escape(f"its text has {mark}, which is not read: write <image>")):
            load(str(tmp_path / "a.json"))
    turns[0]["value"] = f"<image>\nWhat is in {mark}?"  # a reference in the text
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "images": ["a.png"], "conversations": turns}]))
    assert load_llava_json(str(tmp_path / "a.json")).entries[0]["conversations"] == turns


def test_an_image_that_is_named_within_the_text_is_not_read_as_text_alone(tmp_path):
    turns = [{"from": "human", "value": "Picture 1: <img>a.png</img>\nwhat?"}, TURNS[1]]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "conversations": turns}]))
    for load in (load_llava_json, load_conversations):
        with pytest.raises(InputError, match=r"its text has <img>a\.png</img>, which is not read"):
            load(str(tmp_path / "a.json"))
    turns[0]["value"] = "What does the tag <img> do, and what the component <Image>?"
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "conversations": turns}]))
    assert not count_shown(load_llava_json(str(tmp_path / "a.json")))


@pytest.mark.parametrize("answer", ["", " \n"])
def test_an_empty_answer_is_bad(answer, tmp_path):
    rows = [{"id": str(n), "caption": "a disc"} for n in range(3)] + [{"id": "3", "caption": answer}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="3: its answer is empty"):
        load_conversations(str(tmp_path / "a.jsonl"))
    data = load_conversations(str(tmp_path / "a.jsonl"), max_bad_fraction=0.3)
    assert len(data) == 3 and [bad.id for bad in data.bad] == ["3"]


def test_images_without_bytes_are_missing_and_absent_files_are_counted(tmp_path):
    (tmp_path / "a.png").write_bytes(png())
    rows = [{"bytes": png(), "path": None}, {"bytes": b"", "path": None}, {"bytes": None, "path": "a.png"}]
    rows += [{"bytes": b"", "path": "b.png"}]
    pq.write_table(pa.table({"image": rows, "caption": ["a"] * 4}), tmp_path / "a.parquet")
    data = load_conversations(str(tmp_path / "a.parquet"))
    assert count_shown(data) == 3
    assert ["1 of 4 rows have no image" in data.notes[0], len(data.notes)] == [True, 2]
    assert data.notes[1].endswith(
        f"1 of 4 rows cannot be used, the first is row 3: its image b.png is not in {tmp_path}"
    )
    (tmp_path / "b.jsonl").write_text(json.dumps({"images": ["a.png", "https://x.org/c.png"], "caption": "a"}))
    (note,) = load_conversations(str(tmp_path / "b.jsonl")).notes
    assert "row 0: its image is at https://x.org/c.png: only files are read; download it first" in note
    pq.write_table(pa.table({"image": [[["a.png"]]], "caption": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"its column image holds list<.*list<.*string>>, not images"):
        load_conversations(str(tmp_path / "a.parquet"))


def test_of_several_splits_one_is_read(tmp_path):
    """A test set beside the training set is no training data."""
    for split, count in (("train", 10), ("test", 3)):
        rows = [{"caption": f"{split} {n}"} for n in range(count)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = load_conversations(str(tmp_path))
    assert {entry["conversations"][1]["value"][:5] for entry in data.entries} == {"train"} and len(data) == 10
    assert any(note.endswith("1 of 2 files are read, those of the split train") for note in data.notes)
    assert len(load_conversations(str(tmp_path), split="test")) == 3
    assert len(load_conversations(str(tmp_path), split="train[:30%]")) == 3
    ends = load_conversations(str(tmp_path), split="train[:2]+train[-1:]").entries
    assert [entry["conversations"][1]["value"] for entry in ends] == ["train 0", "train 1", "train 9"]
    with pytest.raises(InputError, match="Unrecognized instruction format"):
        load_conversations(str(tmp_path), split="train[:x]")
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(InputError, match=r"file of the split train: give data\.split=, or the path .* test\.jsonl"):
        load_conversations(str(tmp_path))


def test_texts_and_keys_that_are_not_read_are_named(tmp_path):
    document = {"status": "success", "width": 8}
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.json", json.dumps(document)), ("0.txt", "a disc")])
    data = load_conversations(str(tmp_path / "a.tar"))  # metadata beside a caption, as img2dataset writes them
    assert data.entries[0]["conversations"][1]["value"] == "a disc"
    assert data.notes == [f"data.path={tmp_path / 'a.tar'}: the texts of json are not read, those of txt are"]
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.json", json.dumps(document))])
    with pytest.raises(InputError, match="0: its json has none of conversations, messages"):
        load_conversations(str(tmp_path / "a.tar"))
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.json", "{bad")])
    with pytest.raises(InputError, match="0: its json is not valid"):
        load_conversations(str(tmp_path / "a.tar"))
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": messages}))
    (note,) = load_conversations(str(tmp_path / "a.jsonl")).notes
    assert note.endswith("messages have weight, which are not read")


def test_members_of_a_shard_that_cannot_be_read_are_named(tmp_path):
    write_tar(tmp_path / "a.tar", [("0.heic", b"x"), ("0.txt", "a disc")])
    with pytest.raises(InputError, match=r"a\.tar: 0\.heic is not read: give images as JPEG"):
        load_conversations(str(tmp_path / "a.tar"))
    write_tar(tmp_path / "a.tar", [("0.png", png()), ("0.txt", "caf\xe9".encode("latin-1"))])
    with pytest.raises(InputError, match=r"a\.tar: 0\.txt is not a text in UTF-8"):
        load_conversations(str(tmp_path / "a.tar"))
    write_tar(tmp_path / "a.tar", [("0.avif", png(9, "AVIF")), ("0.txt", "a disc")])
    assert load_conversations(str(tmp_path / "a.tar"))[0]["image"].size == (8, 8)


def test_a_slice_of_two_ranges_keeps_the_images_of_its_rows(tmp_path):
    rows = [{"image": {"bytes": png(n), "path": None}, "caption": f"caption {n}"} for n in range(6)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    data = load_conversations(str(tmp_path / "a.parquet"), split="train[:1]+train[-2:]")
    assert [data[n]["image"].getpixel((0, 0))[0] for n in range(len(data))] == [0, 4, 5]
