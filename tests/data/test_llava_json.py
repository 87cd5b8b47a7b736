"""LLaVA JSON: the world written and read back is the world; a malformed entry is named."""

import json

import pytest
from PIL import Image

from cal_cli.data.llava_json import load_llava_json, load_llava_mixture
from cal_cli.runtime.errors import InputError
from tests.cal import cal

GOOD = {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]}


def write(folder, content):
    path = folder / "data.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


def shown(identity, image="p.png", question="<image>x"):
    return {
        "id": identity,
        "image": image,
        "conversations": [{"from": "human", "value": question}, GOOD["conversations"][1]],
    }


def test_several_images_of_a_sample_are_read_in_their_order_wherever_they_lie(tmp_path):
    for name, red in (("a.png", 10), ("b.png", 20)):
        Image.new("RGB", (5, 4), (red, 0, 0)).save(tmp_path / name)
    entries = [
        shown("two", ["b.png", "a.png"], "<image>x and <image>y"),
        shown("one", "a.png"),
        shown("list", ["a.png"]),
    ]
    path = write(tmp_path, entries)
    for data in (load_llava_json(path), load_llava_mixture([{"path": path}])):
        assert [image.getpixel((0, 0))[0] for image in data[0]["image"]] == [20, 10]
        assert data[1]["image"].getpixel((0, 0))[0] == data[2]["image"].getpixel((0, 0))[0] == 10


def test_samples_with_several_images_are_checked_trained_on_and_shown(tmp_path):
    for number in range(3):
        Image.new("RGB", (48, 48), (80 * number, 0, 0)).save(tmp_path / f"{number}.png")
    question = "<image> and <image>\nwhich?"
    entries = [shown(f"s{n}", [f"{n % 3}.png", f"{(n + 1) % 3}.png"], question) for n in range(8)]
    entries += [shown("one", "0.png"), GOOD]
    path = write(tmp_path, entries)
    checked = cal("data-check", f"data.path={path}", "workers=0", "hydra.run.dir=checked", folder=tmp_path)
    assert "10 good, 0 bad" in checked.stdout
    clean = ["data=llava_json", "data.path=checked/clean.json", "data.image_folder=/"]
    words = ["batch_size=5", "epochs=1", "launch.processes=1", "group_by_modality_length=true"]
    assert "completed" in cal("train", *clean, *words, folder=tmp_path).stdout
    cal("token-weight-dump", *clean, "heatmap_samples=1", "output=shown", folder=tmp_path)
    assert (tmp_path / "shown/heatmap.html").read_text().count("data:image/png") == 2
    told = cal("train", *clean, *words, "noise.ratio=0.5", folder=tmp_path, check=False)
    assert told.returncode == 2 and "no conversations can be swapped" in told.stderr  # all share a picture


def test_entries_and_pictures_are_read(tmp_path):
    Image.new("RGB", (5, 4), (1, 2, 3)).save(tmp_path / "p.png")
    shown = {
        **GOOD,
        "image": "p.png",
        "conversations": [{"from": "human", "value": "<image>x"}, GOOD["conversations"][1]],
    }
    data = load_llava_json(write(tmp_path, [GOOD, shown]))
    assert data[0] == {**GOOD, "image": None}
    assert data[1]["image"].size == (5, 4)
    assert data[1]["image"].getpixel((0, 0)) == (1, 2, 3)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("text", "entry 1 .without an id.: must be an object"),
        ({"id": "b"}, "entry 1 .b.: has no 'conversations'"),
        ({"conversations": GOOD["conversations"]}, "entry 1 .without an id.: has no 'id'"),
        ({"id": "b", "conversations": []}, "at least one"),
        ({"id": "b", "conversations": ["hi"]}, "a turn must be"),
        ({"id": "b", "conversations": [{"from": "bot", "value": "x"}]}, "a turn must be"),
        ({"id": "b", "conversations": GOOD["conversations"][::-1]}, "human, gpt"),
        ({"id": "b", "conversations": GOOD["conversations"][:1]}, "human, gpt"),
        ({**GOOD, "id": "b", "image": "p.png"}, "its turns contain '<image>' 0 times"),
        ({**GOOD, "id": "b", "image": ["p.png", "q.png"]}, "2 images but its turns contain '<image>' 0 times"),
        ({**GOOD, "id": "b", "image": []}, "must be a file name or a list of file names"),
        ({**GOOD, "id": "b", "image": ["p.png", None]}, "must be a file name or a list of file names"),
        ({**shown("b"), "image": ["p.png"]}, "its image p.png is not in"),
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
        load_llava_json(write(tmp_path, [GOOD, entry]))


@pytest.mark.parametrize(("content", "named"), [("{", "not valid JSON"), ({}, "list"), ([], "at least one sample")])
def test_a_malformed_file_is_named(tmp_path, content, named):
    with pytest.raises(InputError, match=named):
        load_llava_json(write(tmp_path, content))


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        load_llava_json(str(tmp_path / "none.json"))
    with pytest.raises(InputError, match="no such folder"):
        load_llava_json(write(tmp_path, [GOOD]), str(tmp_path / "none"))


def test_a_file_that_is_no_picture_is_named(tmp_path):
    (tmp_path / "p.png").write_text("not a picture")
    shown = {
        **GOOD,
        "image": "p.png",
        "conversations": [{"from": "human", "value": "<image>x"}, GOOD["conversations"][1]],
    }
    data = load_llava_json(write(tmp_path, [shown]))
    with pytest.raises(InputError, match=r"p\.png: cannot be read as an image"):
        data[0]


def source(folder, name, count, **more):
    """`count` samples with pictures in a folder of their own, as JSON lines."""
    images = folder / name
    images.mkdir()
    entries = []
    for number in range(count):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(images / f"{number}.png")
        turns = [{"from": "human", "value": "<image>x"}, {"from": "gpt", "value": f"{name} {number}"}]
        entries.append({"id": f"{name}{number}", "image": f"{number}.png", "conversations": turns})
    (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(entry) for entry in entries))
    return {"path": str(folder / f"{name}.jsonl"), "image_folder": str(images), **more}


def test_a_mixture_takes_each_source_by_its_weight_with_its_own_images(tmp_path):
    sources = [source(tmp_path, "a", 10, weight=0.5), source(tmp_path, "b", 4), source(tmp_path, "c", 4, weight=2.5)]
    data = load_llava_mixture(sources, seed=1)
    ids = [entry["id"] for entry in data.entries]
    assert [sum(i.startswith(name) for i in ids) for name in "abc"] == [5, 4, 10]
    assert len({i for i in ids if i.startswith("a")}) == 5
    assert sorted(ids.count(f"c{number}") for number in range(4)) == [2, 2, 3, 3]
    for index, identity in enumerate(ids):
        assert data[index]["image"].getpixel((0, 0)) == (int(identity[1:]), 0, 0)
    assert [entry["id"] for entry in load_llava_mixture(sources, seed=1).entries] == ids
    assert [entry["id"] for entry in load_llava_mixture(sources, seed=2).entries] != ids


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([], "give at least one"),
        ([{"image_folder": "x"}], r"sources\[0\]: needs a path"),
        ([{"path": "x", "wight": 1}], "has no 'wight'"),
        ([{"path": "x", "weight": 0}], "must be a number above 0"),
        ([{"path": "none.json"}], r"sources\[0\].path=none.json: there is no such file"),
    ],
)
def test_wrong_sources_are_told(sources, said):
    with pytest.raises(InputError, match=said):
        load_llava_mixture(sources)


def test_few_bad_entries_are_left_out_and_named(tmp_path):
    path = write(tmp_path, [GOOD, {"id": "b"}, *[{**GOOD, "id": f"c{n}"} for n in range(8)]])
    data = load_llava_json(path, max_bad_fraction=0.1)
    assert len(data) == 9 and [bad.id for bad in data.bad] == ["b"]
    with pytest.raises(InputError, match="1 more are bad; cal data-check lists all"):
        load_llava_json(write(tmp_path, [GOOD, {"id": "b"}, {"id": "c"}]), max_bad_fraction=0.1)
    with pytest.raises(InputError, match="a share from 0 to below 1"):
        load_llava_json(path, max_bad_fraction=1.0)


def test_another_sample_with_an_image_takes_the_place_of_one_that_cannot_be_read(tmp_path):
    given = source(tmp_path, "a", 10)
    (tmp_path / "a/3.png").write_text("not a picture")
    data = load_llava_json(given["path"], given["image_folder"], max_bad_fraction=0.1)
    assert data[3]["id"] == "a4" and [bad.id for bad in data[3]["bad"]] == ["a3"]
    assert "bad" not in data[4]
    (tmp_path / "a/4.png").write_text("not a picture either")
    with pytest.raises(InputError, match="cannot be read as an image"):
        data[3]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (0.5, "must be a list with an item for each of its 1 answers"),
        ([0.5, 1.0], "must be a list with an item for each of its 1 answers"),
        ([-1.0], "numbers that are at least 0"),
        ([True], "numbers that are at least 0"),
        ([[1.0, "x"]], "numbers that are at least 0"),
        ([float("nan")], "numbers that are at least 0"),
    ],
)
def test_wrong_weights_are_named(tmp_path, weights, said):
    with pytest.raises(InputError, match=said):
        load_llava_json(write(tmp_path, [{**GOOD, "loss_weights": weights}]))


def test_the_weight_of_a_first_answer_that_is_left_out_goes_too(tmp_path):
    first = {"from": "gpt", "value": "before"}
    entry = {"id": "a", "conversations": [first, *GOOD["conversations"]], "loss_weights": [0.1, 0.7]}
    data = load_llava_json(write(tmp_path, [entry, GOOD]))
    assert data.entries[0]["loss_weights"] == [0.7]
    assert "loss_weights" not in data[0] and data.replace(weighted=True)[1]["loss_weights"] is None
