"""Exports against the formats' own definitions, and read back by `datasets` and TRL."""

import base64
import json
import re
from io import BytesIO
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from cal_cli.data.export import FORMATS, export_samples
from cal_cli.data.llava_json import load_llava_json
from cal_cli.data.sample import Conversations
from cal_cli.toy.model import load_tiny
from cal_cli.toy.world import make_scenes

AUDIT_PAGE = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()


@pytest.fixture(scope="module")
def data():
    return make_scenes(n=8, seed=3, text_only_share=0.2, families=["captions", "questions"])


def export(folder, name, data, **changes):
    changes = {"reasons": {2: "rank 1 by contradiction"}, "unusable": [], "weights": {}, "about": {}} | changes
    message = export_samples(folder, name, data, **changes)
    rows = []
    if name != "trl" and name != "llava":
        rows = [json.loads(line) for line in (folder / "data.jsonl").read_text().splitlines()]
    return message, rows


def weigh(data):
    """Weights for the tokens of each answer, of which the mean is 0.25."""
    return {
        n: [[0.0, 0.5] for turn in entry["conversations"] if turn["from"] == "gpt"]
        for n, entry in enumerate(data.entries)
        if "image" in entry
    }


def test_llava_json_is_read_back_and_left_out_samples_are_kept_beside_it(data, tmp_path):
    weights = weigh(data)
    message, _ = export(tmp_path, "llava", data, weights=weights)
    back = load_llava_json(str(tmp_path / "data.json"), "/")
    places = [n for n in range(len(data)) if n != 2]
    assert [entry["id"] for entry in back.entries] == [data.entries[n]["id"] for n in places]
    for entry, place in zip(back.entries, places, strict=True):
        assert entry["conversations"] == data.entries[place]["conversations"]
        assert entry.get("loss_weights") == weights.get(place)
        if "image" in entry:
            assert back.open_image(entry["image"]).tobytes() == data.open_image(data.entries[place]["image"]).tobytes()
    left = json.loads((tmp_path / "left_out.json").read_text())
    assert [entry["id"] for entry in left] == [data.entries[2]["id"]]
    changes = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert changes[0 if 0 in weights else 1]["weights"][0] == 0.25
    assert {"index": 2, "id": data.entries[2]["id"], "left_out": "rank 1 by contradiction"} in changes
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["written_for"] == "LLaVA 1.5" and manifest["left_out"] == 1 and "objective=column" in message


def test_swift_messages_have_a_loss_scale(data, tmp_path):
    message, rows = export(tmp_path, "swift", data, reasons={}, weights=weigh(data))
    assert "--is_binary_loss_scale false" in message
    for row, entry in zip(rows, data.entries, strict=True):
        assert row["id"] == entry["id"] and len(row["images"]) == ("image" in entry)
        assert sum(one["content"].count("<image>") for one in row["messages"]) == len(row["images"])
        assert all(Image.open(name) for name in row["images"])
        for one, turn in zip(row["messages"], entry["conversations"], strict=True):
            expected = {"role": {"human": "user", "gpt": "assistant"}[turn["from"]], "content": turn["value"]}
            if turn["from"] == "gpt":
                expected["loss_scale"] = 0.25 if "image" in entry else 1.0
            assert one == expected
    table = datasets.load_dataset("json", data_files=str(tmp_path / "data.jsonl"), cache_dir=tmp_path / "c")["train"]
    assert len(table) == len(data)


def test_llama_factory_has_its_description_of_the_data(data, tmp_path):
    _, rows = export(tmp_path, "llama_factory", data)
    (info,) = json.loads((tmp_path / "dataset_info.json").read_text()).values()
    assert (tmp_path / info["file_name"]).is_file() and info["formatting"] == "sharegpt"
    for row in rows:
        turns = row[info["columns"]["messages"]]
        assert [turn["from"] for turn in turns] == ["human", "gpt"] * (len(turns) // 2)
        assert sum(turn["value"].count("<image>") for turn in turns) == len(row[info["columns"]["images"]])


def test_llama_factory_v1_has_a_loss_weight_in_every_message(data, tmp_path):
    _, rows = export(tmp_path, "llama_factory_v1", data, reasons={}, weights=weigh(data))
    for row, entry in zip(rows, data.entries, strict=True):
        assert set(row) == {"messages", "extra_info"} and json.loads(row["extra_info"]) == {"id": entry["id"]}
        for one, turn in zip(row["messages"], entry["conversations"], strict=True):
            assert set(one) == {"role", "content", "loss_weight"}
            assert {part["type"] for part in one["content"]} <= {"text", "image_url"}
            assert all(isinstance(part["value"], str) for part in one["content"])
            answered = one["role"] == "assistant"
            assert one["loss_weight"] == (0.0 if not answered else 0.25 if "image" in entry else 1.0)
            text = "".join(part["value"] for part in one["content"] if part["type"] == "text")
            assert text == turn["value"].replace("<image>\n", "")


def load_trl(data, folder):
    export(folder, "trl", data, reasons={}, weights=weigh(data))
    return datasets.load_dataset("parquet", data_files=str(folder / "data.parquet"), cache_dir=folder / "c")["train"]


def test_trl_s_own_collator_reads_the_parquet(data, tmp_path):
    table = load_trl(data, tmp_path)
    assert table.features["images"].feature == datasets.Image() and table["id"] == [one["id"] for one in data.entries]
    _, processor = load_tiny()
    rows = [row for row in table if row["images"]]
    batch = DataCollatorForVisionLanguageModeling(processor)(rows)
    assert len(batch["pixel_values"]) == len(rows)
    assert (batch["input_ids"] == processor.image_token_id).any(dim=1).all()


def test_the_documented_trainer_weighs_each_answer(data, tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", AUDIT_PAGE, re.DOTALL)
    model, processor = load_tiny()
    names = {
        "model": model,
        "processor": processor,
        "path": str(load_trl(data, tmp_path).cache_files and tmp_path / "data.parquet"),
    }
    args = SFTConfig(str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=4, bf16=False, report_to="none")
    args.max_length, args.remove_unused_columns, args.assistant_only_loss = None, False, True
    names["args"] = args
    exec(compile(code, "audit.md", "exec"), names)
    trainer = names["trainer"]
    assert trainer.state.global_step == 1
    rows = [row for row in trainer.train_dataset if row["images"]][:3]
    batch = trainer.data_collator(rows)
    supervised = batch["labels"] != -100
    assert supervised.any() and torch.equal(batch["weights"][supervised], torch.full((int(supervised.sum()),), 0.25))
    assert not batch["weights"][~supervised].any()


def test_images_within_the_data_become_files(tmp_path):
    buffer = BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    inline = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    entries = [{"id": "a", "image": inline, "conversations": turns}]
    (tmp_path / "source").mkdir()
    (tmp_path / "source/data.json").write_text(json.dumps(entries))
    _, (row,) = export(tmp_path / "e", "swift", load_llava_json(str(tmp_path / "source/data.json")), reasons={})
    assert Image.open(row["images"][0]).getpixel((0, 0)) == (255, 0, 0)


def test_unusable_samples_are_listed_and_not_written(tmp_path):
    def fail(name):
        raise AssertionError(name)

    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "red"}]
    data = Conversations([{"id": "a", "image": "a.png", "conversations": turns}], fail)
    _, rows = export(tmp_path, "swift", data, reasons={}, unusable=[0])
    assert rows == [] and "cannot be used" in (tmp_path / "changes.jsonl").read_text()


def test_every_format_names_a_version():
    assert all(any(character.isdigit() for character in form.peer) for form in FORMATS.values())
