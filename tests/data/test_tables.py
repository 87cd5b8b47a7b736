"""Data sets that `datasets` reads, against the same samples read as LLaVA JSON."""

import io
import json
import tarfile

import datasets
import numpy as np
import pytest
from PIL import Image

from cal_cli.data.llava_json import load_llava_json
from cal_cli.data.noise import NoiseConfig, inject_noise, swap_conversations
from cal_cli.data.tables import load_conversations
from cal_cli.runtime.errors import InputError
from tests.cal import cal

WITH_IMAGE = datasets.Features(
    {
        "id": datasets.Value("string"),
        "image": datasets.Image(),
        "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        "family": datasets.Value("string"),
        "correlated": [[datasets.Value("int64")]],
        "regions": [[datasets.Value("int64")]],
    }
)


PLAIN = datasets.Image(decode=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The same 24 samples, some of text alone, as LLaVA JSON and images."""
    folder = tmp_path_factory.mktemp("world")
    cal("noise-inject", "ratio=0", "output=world", "data.n=24", "data.text_only_share=0.3", folder=folder)
    return folder / "world"


@pytest.fixture(scope="module")
def entries(world):
    return json.loads((world / "data.json").read_text())


def content(world, entry):
    return (world / "images" / entry["image"]).read_bytes() if "image" in entry else None


def write_parquet(world, entries, folder):
    folder.mkdir()
    rows = [
        {
            **dict.fromkeys(WITH_IMAGE),
            **entry,
            "image": {"bytes": content(world, entry), "path": None} if "image" in entry else None,
        }
        for entry in entries
    ]
    for shard in range(2):
        datasets.Dataset.from_list(rows[shard::2], WITH_IMAGE).to_parquet(str(folder / f"train-{shard}.parquet"))
    return folder


def assert_same(found, expected):
    """The same conversations and pictures; `expected` in the order of `found`."""
    assert len(found) == len(expected) > 0
    for index, entry in enumerate(expected.entries):
        for key in ("conversations", "family", "correlated", "regions"):
            assert found.entries[index].get(key) == entry.get(key)
        assert ("image" in found.entries[index]) == ("image" in entry)
        pictures = [data[index]["image"] for data in (found, expected)]
        if "image" in entry:
            assert np.array_equal(*(np.asarray(picture) for picture in pictures))
        else:
            assert pictures == [None, None]
    assert list(found.entries) == [found.entries[index] for index in range(len(found))]


def in_order(world, entries, tmp_path):
    (tmp_path / "ordered.json").write_text(json.dumps(entries))
    return load_llava_json(str(tmp_path / "ordered.json"), str(world / "images"))


def test_parquet_is_read_as_llava_json_is(world, entries, tmp_path):
    found = load_conversations(str(write_parquet(world, entries, tmp_path / "parquet")))
    assert_same(found, in_order(world, entries[::2] + entries[1::2], tmp_path))
    assert [entry["id"] for entry in found.entries] == [entry["id"] for entry in entries[::2] + entries[1::2]]


def test_json_lines_name_files(world, entries, tmp_path):
    lines = tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    assert_same(load_conversations(str(lines), image_folder=str(world / "images")), in_order(world, entries, tmp_path))


def test_tar_shards_hold_pictures_beside_json_or_captions(world, entries, tmp_path):
    shown = [entry for entry in entries if "image" in entry]
    for kind in ("json", "txt"):
        shards = tmp_path / kind
        shards.mkdir()
        for shard in range(2):
            with tarfile.open(shards / f"{shard}.tar", "w") as tar:
                for number, entry in list(enumerate(shown))[shard::2]:
                    text = json.dumps(entry) if kind == "json" else entry["conversations"][1]["value"]
                    for suffix, value in (("png", content(world, entry)), (kind, text.encode())):
                        member = tarfile.TarInfo(f"{number:03d}.{suffix}")
                        member.size = len(value)
                        tar.addfile(member, io.BytesIO(value))
    ordered = shown[::2] + shown[1::2]
    assert_same(load_conversations(str(tmp_path / "json")), in_order(world, ordered, tmp_path))
    captions = [
        {
            **{key: value for key, value in entry.items() if key not in ("family", "correlated", "regions")},
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": e[1]["value"]}],
        }
        for entry in ordered
        for e in [entry["conversations"]]
    ]
    assert_same(load_conversations(str(tmp_path / "txt")), in_order(world, captions, tmp_path))


def test_messages_and_pairs_are_conversations(world, entries, tmp_path):
    entry = next(entry for entry in entries if "image" in entry)
    picture = {"bytes": content(world, entry), "path": None}
    asked = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a ring"}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "what?\n"}, {"type": "image", "text": None}]},
        {"role": "assistant", "content": [{"type": "text", "text": "a ring"}]},
    ]
    for name, row, expected in (
        ("plain", {"image": picture, "messages": asked}, "<image>\nwhat?"),
        ("parts", {"images": [picture], "messages": parts}, "what?\n<image>"),
        ("pairs", {"images": [picture], "texts": [{"user": "what?", "assistant": "a ring"}]}, "<image>\nwhat?"),
        ("words", {"images": [], "texts": [{"user": "what?", "assistant": "a ring"}]}, "what?"),
    ):
        rows = datasets.Dataset.from_list([row, row])
        if name in ("plain", "parts", "pairs"):
            column = "image" if "image" in row else "images"
            feature = datasets.Image() if column == "image" else datasets.List(datasets.Image())
            rows = rows.cast_column(column, feature)
        rows.to_parquet(str(tmp_path / f"{name}.parquet"))
        found = load_conversations(str(tmp_path / f"{name}.parquet"))
        assert [turn["value"] for turn in found.entries[1]["conversations"]] == [expected, "a ring"]
        assert [turn["from"] for turn in found.entries[1]["conversations"]] == ["human", "gpt"]
        assert (found[1]["image"] is not None) == (name != "words")


def test_a_column_of_weights_is_read(tmp_path):
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a ring"}]
    for name, weights in (("answers", [[0.5], None]), ("tokens", [[[0.5, 1.0, 0.0]], [[1.0, 1.0, 2.0]]])):
        rows = [{"conversations": talk, "loss_weights": one} for one in weights]
        datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / f"{name}.parquet"))
        found = load_conversations(str(tmp_path / f"{name}.parquet"))
        assert [entry.get("loss_weights") for entry in found.entries] == weights


def test_noise_is_that_of_the_same_samples_in_json(world, entries, tmp_path):
    lines = tmp_path / "data.jsonl"
    lines.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    images = str(world / "images")
    both = load_conversations(str(lines), image_folder=images), load_llava_json(str(world / "data.json"), images)
    noisy = [swap_conversations(data.entries, 0.5, 3) for data in both]
    assert list(noisy[0][0]) == list(noisy[1][0]) and noisy[0][1] == noisy[1][1]


def test_noise_knows_pictures_by_their_bytes(world, tmp_path):
    pictures = [path.read_bytes() for path in sorted((world / "images").iterdir())[:4]]
    rows = [{"image": {"bytes": pictures[n // 5], "path": None}, "caption": f"caption {n}"} for n in range(20)]
    datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).to_parquet(str(tmp_path / "a.parquet"))
    data = load_conversations(str(tmp_path / "a.parquet"))
    noisy, changed = inject_noise(data, NoiseConfig(1.0, 0))
    assert len(changed) == 20
    for n, entry in enumerate(noisy.entries):
        assert int(entry["conversations"][1]["value"].split()[1]) // 5 != n // 5


def test_bad_rows_are_left_out_and_counted(world, entries, tmp_path):
    broken = [dict(entry) for entry in entries]
    broken[3] = {**broken[3], "conversations": broken[3]["conversations"][:1]}
    folder = write_parquet(world, broken, tmp_path / "parquet")
    with pytest.raises(InputError, match=r"turns must go human, gpt.*cal data-check"):
        load_conversations(str(folder))
    found = load_conversations(str(folder), max_bad_fraction=0.1)
    assert len(found) == 23 and len(found.bad) == 1 and len(list(found.entries)) == 23
    assert all(len(entry["conversations"]) >= 2 for entry in found.entries)
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    rows = [{"image": "../secret.png", "caption": "no"}, {"image": "a.png", "caption": "yes"}]
    lines = tmp_path / "images" / "x.jsonl"
    lines.parent.mkdir()
    lines.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match="leaves the folder"):
        load_conversations(str(lines))[0]


@pytest.mark.slow
def test_training_from_parquet_is_training_from_json(world, entries, tmp_path):
    folder = write_parquet(world, entries, tmp_path / "parquet")
    ordered = tmp_path / "ordered.json"
    ordered.write_text(json.dumps(entries[::2] + entries[1::2]))
    words = ["train", "batch_size=4", "workers=2", "group_by_modality_length=true", "noise.ratio=0.5"]
    runs = []
    for name, where in (("table", [folder]), ("llava_json", [ordered, world / "images"])):
        data = [f"data={name}", *(f"data.{k}={v}" for k, v in zip(("path", "image_folder"), where, strict=False))]
        cal(*words, *data, f"name={name}", folder=tmp_path)
        (checkpoint,) = tmp_path.glob(f"runs/train/{name}/*/checkpoint/model.safetensors")
        runs.append(checkpoint.read_bytes())
    assert runs[0] == runs[1]


@pytest.mark.slow
def test_data_check_finds_bad_rows_and_training_takes_the_good_ones(world, entries, tmp_path):
    broken = [dict(entry) for entry in entries]
    broken[2] = {**broken[2], "conversations": broken[2]["conversations"][:1]}
    shown = next(number for number, entry in enumerate(broken) if "image" in entry and number > 4)
    folder = write_parquet(world, broken, tmp_path / "parquet")
    rows = list(datasets.load_dataset("parquet", data_dir=str(folder), split="train").cast_column("image", PLAIN))
    place = [row["id"] for row in rows].index(broken[shown]["id"])
    rows[place]["image"] = {"bytes": rows[place]["image"]["bytes"][:60], "path": None}
    (folder / "train-1.parquet").unlink()
    datasets.Dataset.from_list(rows, WITH_IMAGE).to_parquet(str(folder / "train-0.parquet"))

    told = cal("data-check", "data=table", f"data.path={folder}", "workers=1", folder=tmp_path).stdout
    assert "24 samples: 22 good, 2 bad" in told and "train on the good samples: the same data with data.rows=" in told
    (report,) = tmp_path.glob("runs/data-check/*/rows.json")
    good = json.loads(report.read_text())
    bad_ids = {broken[2]["id"], broken[shown]["id"]}
    assert {rows[number]["id"] for number in range(24) if number not in good} == bad_ids
    found = load_conversations(str(folder), rows=str(report), max_bad_fraction=0.0)
    assert [entry["id"] for entry in found.entries] == [rows[number]["id"] for number in good]
    assert all((found[place]["image"] is not None) == ("image" in found.entries[place]) for place in range(len(found)))
    report.write_text("[1, 24]")
    with pytest.raises(InputError, match="must list numbers from 0 to 23"):
        load_conversations(str(folder), rows=str(report))


@pytest.mark.parametrize("kind", ["names", "bytes"])
def test_lists_of_images_are_opened_in_their_order(world, entries, tmp_path, kind):
    shown = [entry["image"] for entry in entries if "image" in entry][:2]
    expected = [np.asarray(Image.open(world / "images" / name).convert("RGB")) for name in shown]
    rows = [{"images": shown[:1], "caption": "one"}, {"images": shown[::-1], "caption": "two"}]
    if kind == "names":
        path = tmp_path / "lists.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path = tmp_path / "lists.parquet"
        content = [
            {**row, "images": [(world / "images" / name).read_bytes() for name in row["images"]]} for row in rows
        ]
        datasets.Dataset.from_list(content).to_parquet(path)
    found = load_conversations(str(path), image_folder=str(world / "images"))
    assert np.array_equal(np.asarray(found[0]["image"]), expected[0])
    pairs = zip(found[1]["image"], expected[::-1], strict=True)
    assert all(np.array_equal(np.asarray(one), other) for one, other in pairs)
    assert found[1]["conversations"][0]["value"] == "<image><image>"


def test_noise_inject_writes_the_pictures_that_lie_in_the_table(world, entries, tmp_path):
    folder = write_parquet(world, entries, tmp_path / "parquet")
    cal("noise-inject", "data=table", f"data.path={folder}", "ratio=0", "output=out", folder=tmp_path)
    written = load_llava_json(str(tmp_path / "out/data.json"), str(tmp_path / "out/images"))
    assert_same(written, in_order(world, entries[::2] + entries[1::2], tmp_path))


def test_what_cannot_be_loaded_is_told_in_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.parquet").write_text("no")
    (tmp_path / "broken.jsonl").write_text('{"a": 1}\n{"a"\n')
    datasets.Dataset.from_list([{"a": 1}]).to_parquet(str(tmp_path / "other.parquet"))
    for path, said in (
        ("nobody/nothing", "run `hf download --repo-type dataset nobody/nothing --local-dir nothing`"),
        (f"{tmp_path}/empty", "contains no .parquet, .tar"),
        (f"{tmp_path}/broken.parquet", "cannot be read"),
        (f"{tmp_path}/broken.jsonl", "cannot be read"),
        (f"{tmp_path}/other.parquet", "has no column of conversations: it has a, but one of"),
    ):
        result = cal("train", "data=table", f"data.path={path}", folder=tmp_path, check=False)
        told = [line for line in result.stderr.splitlines() if line and not line.startswith("Generating train split")]
        assert result.returncode == 2 and len(told) == 1 and said in told[0], result.stderr
