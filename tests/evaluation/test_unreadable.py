"""Questions whose image cannot be read, or which the processor refuses: named, counted, and never the end of all."""

import json

import datasets
import pytest
from PIL import Image

from cal_cli.evaluation.benchmark import make_benchmark
from cal_cli.evaluation.evaluator import Scorer, generate_answers
from cal_cli.evaluation.metrics import UNREADABLE, Question
from cal_cli.evaluation.results import read_predictions, score_answers
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny
from tests.cal import cal
from tests.evaluation.fixtures import picture
from tests.evaluation.test_results import ask, rows


def write(folder, broken, count=8):
    """A folder of questions about images of their own, of which some cannot be read."""
    folder.mkdir()
    broken_image = {"bytes": b"\x89PNG?", "path": None}
    found = [
        {"question_id": n, "question": "is it?", "answer": "yes", "image": broken_image if n in broken else picture(n)}
        for n in range(count)
    ]
    features = datasets.Features(
        {
            "question_id": datasets.Value("int64"),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
            "image": datasets.Image(),
        }
    )
    datasets.Dataset.from_list(found, features).to_parquet(folder / "test-0.parquet")
    return folder


def words(folder, *more):
    return [
        "eval",
        "checkpoint=tiny",
        "benchmark=dataset",
        f"benchmark.path={folder}",
        "benchmark.split=test",
        'benchmark.prompt="{{ question }}"',
        "benchmark.answers=answer",
        "benchmark.id=question_id",
        "benchmark.max_new_tokens=2",
        "benchmark.metric={_target_: cal_cli.evaluation.metrics.Mean, rule: exact_match, name: accuracy}",
        "batch_size=3",
        *more,
    ]


def test_an_image_that_cannot_be_read_is_scored_as_wrong_and_counted(tmp_path):
    data = write(tmp_path / "data", {5})
    refused = cal(*words(data), folder=tmp_path, check=False)
    assert refused.returncode == 2 and "question 5: its image" in refused.stderr
    assert "max_bad_fraction=0.001 allows" in refused.stderr
    told = cal(*words(data, "max_bad_fraction=0.2"), folder=tmp_path).stdout
    assert "question 5: its image" in told and "scored as wrong" in " ".join(told.split())
    (found,) = tmp_path.glob("runs/eval/*/tiny/results.json")
    results = json.loads(found.read_text())
    assert results["n"] == 8 and results["unreadable"] == 1
    lines = [json.loads(line) for line in found.with_name("predictions.jsonl").read_text().splitlines()]
    assert [line["id"] for line in lines if line["prediction"] == UNREADABLE] == ["5"]
    assert next(line["score"] for line in lines if line["id"] == "5") == 0.0


@pytest.mark.parametrize(
    ("rule", "answer", "options"),
    [
        ("exact_match", "a", {}),
        ("contained", "a", {}),
        ("anls", "a", {}),
        ("relaxed_accuracy", "0", {}),
        ("letter_alone", "A", {}),
        ("first_character", "A", {}),
        ("letter_extracted", "A", {}),
        ("POPE", "no", {}),
        ("vqa_accuracy", ["a"] * 10, {}),
    ],
)
def test_no_rule_takes_an_unreadable_image_for_right(rule, answer, options, tmp_path):
    found = ask(tmp_path, rows(answer), rule, **options)
    results = score_answers("mine", found, [UNREADABLE], {}, tmp_path)
    assert next(iter(results["metrics"].values()))["value"] == 0.0


def test_a_training_is_not_begun_with_images_that_would_end_it(tmp_path):
    _, processor = load_tiny()
    data = write(tmp_path / "data", {3})
    metric = {"_target_": "cal_cli.evaluation.metrics.Mean", "rule": "exact_match", "name": "accuracy"}
    found = make_benchmark(str(data), "test", "{{ question }}", "answer", metric, 2)
    with pytest.raises(InputError, match="evaluate_every: question 3: its image"):
        Scorer(found, [], 8, processor, 4)


def test_the_question_that_the_processor_refuses_is_named():
    model, processor = load_tiny()
    image = Image.new("RGB", (64, 64))
    asked = [
        Question(f"q{n}", f"i{n}", "<image>\nwhat?" if n != 2 else "<image>\n<image>\nwhat?", ["a"], lambda: [image])
        for n in range(5)
    ]
    asked[2].images = lambda: [image, image]
    asked[2].question += processor.image_token  # of no image
    with pytest.raises(InputError, match="question q2: "):
        generate_answers(model.eval(), processor, asked, 5, 2)


def test_published_ids_that_repeat_are_matched_by_question_or_order(tmp_path):
    asked = [
        Question("7", None, "what?", ["a"], list),
        Question("7-1", None, "who?", ["a"], list, shared_id="7"),
        Question("7-2", None, "where?", ["a"], list, shared_id="7"),
    ]
    path = tmp_path / "p.jsonl"
    for lines, expected in (
        ([{"id": 7, "prediction": text} for text in "abc"], ["a", "b", "c"]),
        ([{"id": 7, "question": q, "prediction": q[:3]} for q in ("where?", "what?", "who?")], ["wha", "who", "whe"]),
        ([{"id": name, "prediction": name} for name in ("7-2", "7", "7-1")], ["7", "7-1", "7-2"]),
    ):
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        assert read_predictions(path, asked) == expected
    path.write_text("".join(json.dumps({"id": 7, "prediction": text}) + "\n" for text in "abcd"))
    with pytest.raises(InputError, match="line 4 answers question '7' a second time"):
        read_predictions(path, asked)
