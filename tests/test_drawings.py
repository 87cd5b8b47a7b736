"""The data set of drawings that docs/studies/drawings makes: its samples, from drawings that the test makes."""

import importlib.util
import io
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from cal_cli.data.tables import load_conversations
from cal_cli.evaluation.metrics import Words
from cal_cli.runtime.config import build

FOLDER = Path(__file__).parent.parent / "docs/studies/drawings"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_data", FOLDER / "make_data.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def concepts(script, monkeypatch):
    def draw(colour):
        return {vendor: Image.new("RGBA", (96, 96), (*colour, 255)) for vendor in ("noto", "fluent")}

    return [
        script.Concept("fox", ["animal", "face"], "fuchs", ["tier"], draw((250, 100, 0))),
        script.Concept("sun", ["weather"], "sonne", ["wetter"], draw((255, 220, 0))),
        script.Concept("wave", ["sea", "water"], "welle", ["meer", "wasser"], draw((0, 0, 200))),
    ]


def test_a_wrong_language_changes_the_answers_alone(script, concepts):
    english, german = (
        list(script.make_samples(concepts, ["noto"], 30, "train", foreign=foreign)) for foreign in (0, 1)
    )
    for one, other in zip(english, german, strict=True):
        assert [one[key] for key in ("id", "image", "family", "question")] == [
            other[key] for key in ("id", "image", "family", "question")
        ]
        assert one["conversations"][0] == other["conversations"][0]
        assert not set(one["answers"]) & set(other["answers"])
    assert {row["family"] for row in english} == {"name", "words", "several"}
    mixed = list(script.make_samples(concepts, ["noto"], 30, "train", foreign=0.5))
    assert all(row in (one, other) for row, one, other in zip(mixed, english, german, strict=True))
    assert 8 <= sum(row["language"] == "de" for row in mixed) <= 22


def test_the_first_samples_do_not_depend_on_their_number(script, concepts):
    few, many = (list(script.make_samples(concepts, ["noto"], count, "train")) for count in (5, 9))
    assert few == many[:5]
    other = list(script.make_samples(concepts, ["noto"], 5, "align"))
    assert [row["image"]["bytes"] for row in other] != [row["image"]["bytes"] for row in few]


def test_samples_are_read_as_data_and_as_a_benchmark(script, concepts, tmp_path):
    script.write(tmp_path / "test.parquet", script.make_samples(concepts, ["fluent"], 12, "test"))
    data = load_conversations(path=str(tmp_path / "test.parquet"))
    assert len(data) == 12 and data[0]["image"].size == (64, 64)
    node = OmegaConf.load(FOLDER / "benchmark/drawings.yaml")
    node.pop("defaults")
    node["_target_"], node["path"] = "cal_cli.evaluation.benchmark.make_benchmark", str(tmp_path / "test.parquet")
    benchmark = build(OmegaConf.create({"benchmark": node}), "benchmark")
    assert isinstance(benchmark.metric, Words)
    answers = [turns[1]["value"] for turns in (entry["conversations"] for entry in data.entries)]
    sums = benchmark.metric.score(benchmark.questions, answers)
    for question, parts in zip(benchmark.questions, sums, strict=True):
        assert parts["score"] == 1.0 or question.tags["kind"] == "words"  # of which an answer names four at most


def test_drawings_keep_to_the_image(script, concepts):
    rows = list(script.make_samples(concepts, ["noto"], 40, "train", tasks=("several",)))
    for row in rows:
        image = Image.open(io.BytesIO(row["image"]["bytes"]))
        assert image.size == (64, 64) and len(row["answers"]) == 3
        assert len(set(image.convert("RGB").getdata())) > 3  # three colours and the background
