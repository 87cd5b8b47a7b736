"""What is not known about a question is not scored, and what the metric cannot score is refused before generation."""

import json

import datasets
import pytest
from omegaconf import OmegaConf

from cal_cli.evaluation.benchmark import Benchmark, make_benchmark
from cal_cli.evaluation.results import score_answers
from cal_cli.reporting.pairs import compare
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny
from tests.cal import cal
from tests.evaluation.fixtures import picture

MEAN = {"_target_": "cal_cli.evaluation.metrics.Mean", "name": "right"}


def ask(folder, rows, rule="exact_match", **options):
    """A benchmark of text rows in JSON lines; `rule` is one of `Mean`, or a metric's name."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metric = {**MEAN, "rule": rule} if rule[:1].islower() else {"_target_": f"cal_cli.evaluation.metrics.{rule}"}
    metric |= options.pop("metric", {})
    options = {"prompt": "{{ question }}", "answers": "answers", "image": None, "max_new_tokens": 4} | options
    return make_benchmark(path=str(folder / "rows.jsonl"), split="test", metric=OmegaConf.create(metric), **options)


def rows(*answers, **more):
    return [{"question": f"what, {n}?", "answers": answer, **more} for n, answer in enumerate(answers)]


@pytest.mark.parametrize("unknown", [None, [None, None], [], [""], "", " "])
def test_a_question_without_answers_is_asked_but_not_scored(unknown, tmp_path):
    found = ask(tmp_path, rows(["red", None], unknown, ["none"]))
    assert [question.answers for question in found.questions] == [["red"], [], ["none"]]
    result = score_answers("mine", found, ["red", "None", "no"], {}, tmp_path / "a")
    assert result["n"] == 2 and result["without_answers"] == 1 and result["metrics"]["right"]["value"] == 0.5
    lines = [json.loads(line) for line in (tmp_path / "a/predictions.jsonl").open()]
    assert [line["score"] for line in lines] == [1.0, None, 0.0]
    score_answers("mine", found, ["red", "None", "none"], {}, tmp_path / "b")
    assert compare(tmp_path / "a", tmp_path / "b")["n"] == 2


def test_an_expression_over_a_null_column_has_no_answer(tmp_path):
    found = ask(tmp_path, rows(1, None), answers="'ABC'[answers]")
    assert [question.answers for question in found.questions] == [["B"], []]
    with pytest.raises(InputError, match="row 1"):  # a wrong number is not a missing one
        ask(tmp_path, rows(1, 7), answers="'ABC'[answers]")


def test_whole_numbers_are_written_as_such(tmp_path):
    data = datasets.Dataset.from_dict({"question": ["a", "b"], "answers": [3.0, None], "year": [2003.0, 1.5]})
    data.to_parquet(tmp_path / "rows.parquet")
    found = make_benchmark(
        path=str(tmp_path / "rows.parquet"),
        split="test",
        prompt="{{ question }} {{ year }}",
        answers="answers",
        metric=OmegaConf.create({**MEAN, "rule": "relaxed_accuracy"}),
        max_new_tokens=4,
        image=None,
        id="year",
    )
    assert [(q.id, q.question, q.answers) for q in found.questions] == [("2003", "a 2003", ["3"]), ("1.5", "b 1.5", [])]


@pytest.mark.parametrize("given", [["a-2", "a", "a"], ["a", "a", "a-1"], ["a", "a", "a", "a-1", "a-1-2"], ["", ""]])
def test_no_question_is_lost_to_its_id(given, tmp_path):
    found = ask(tmp_path, [{"question": "?", "answers": "x", "name": name} for name in given], id="name")
    ids = [question.id for question in found.questions]
    assert len(set(ids)) == len(given)
    for place, name in enumerate(given):  # what is given once keeps its id
        if given.index(name) == place:
            assert ids[place] == name


@pytest.mark.parametrize(
    ("rule", "answers", "options", "said"),
    [
        ("relaxed_accuracy", ["3", "4"], {}, "one right answer, not 2"),
        ("letter_alone", ["A", "B"], {}, "one right answer, not 2"),
        ("first_character", "river", {}, "'river' is not a single character"),
        ("letter_extracted", "E", {}, "'E' is not among the options ABCD"),
        ("letter_extracted", "A, B", {}, "is not among the options"),
        ("MMStar", "F", {"tags": {"category": "c", "l2_category": "l"}}, "'F' is not among the options ABCD"),
        ("MMStar", "A", {"tags": {"category": "c"}}, "it has no tag 'l2_category'"),
        ("MME", "maybe", {"tags": {"category": "c", "question_id": "q"}}, "'maybe' is neither yes nor no"),
        ("POPE", ["yes", "no"], {}, "one right answer, not 2"),
        ("Boxes", [1, 2, 3], {}, "four numbers, not 3"),
        ("Boxes", ["left"], {}, "could not convert"),
        ("exact_match", {"text": "x"}, {}, "must be a text or a number"),
        ("exact_match", "x", {"metric": {"by": "kind"}}, "it has no tag 'kind'"),
        ("letter_among_options", "A", {"metric": {"given": ["choices"]}}, "it has no tag 'choices'"),
        ("exact_match", "x", {"outline": "[1, 2, 3]"}, "four numbers"),
        ("exact_match", "x", {"outline": "question"}, "four numbers"),
        ("exact_match", "x", {"each": "nothing"}, "must be a list, not None"),
        ("exact_match", "x", {"prompt": "{{ nothing }}"}, "a value is null"),
        ("exact_match", "x", {"prompt": "{{ 1 // 0 }}"}, "row 0 does not fit prompt and tags"),
        ("exact_match", "x", {"prompt": "{{ picture.width }}"}, "row 0 does not fit prompt and tags"),
    ],
)
def test_a_question_that_cannot_be_scored_is_refused_when_it_is_made(rule, answers, options, said, tmp_path):
    with pytest.raises(InputError, match=said):
        ask(tmp_path, rows(answers, nothing=None), rule, **options)


def test_options_beyond_the_usual_letters_are_scored(tmp_path):
    tags = {"category": "c", "l2_category": "l", "choices": "ABCDEF"}
    found = ask(tmp_path, rows("E", "f"), "MMStar", tags=tags)
    assert score_answers("mine", found, ["E", "(F)"], {}, tmp_path)["metrics"]["average"]["value"] == 1.0
    assert score_answers("mine", found, ["A", "(E)"], {}, tmp_path)["metrics"]["average"]["value"] == 0.0


def fail(prediction, answers):
    return 1.0 / len(prediction)


def test_a_rule_of_the_user_s_that_fails_names_the_question(tmp_path):
    found = ask(tmp_path, rows("x", "y"), f"{__name__}.fail")
    with pytest.raises(InputError, match=r"fail: question 1: ZeroDivisionError: .*; the answers are kept"):
        score_answers("mine", found, ["no", ""], {}, tmp_path)


def test_an_image_of_neither_bytes_nor_path_is_none(tmp_path):
    data = datasets.Dataset.from_list([{"question": "?", "answers": "x", "image": one} for one in (picture(1), None)])
    data = data.add_column("images", [[picture(1), {"bytes": None, "path": None}], None])
    data = data.cast_column("images", datasets.List(datasets.Image()))
    data.to_parquet(tmp_path / "rows.parquet")
    found: Benchmark = make_benchmark(
        path=str(tmp_path / "rows.parquet"),
        split="test",
        prompt="{{ question }}",
        answers="answers",
        metric=OmegaConf.create({**MEAN, "rule": "exact_match"}),
        max_new_tokens=4,
        image="images",
    )
    assert [len(question.images()) for question in found.questions] == [1, 0]


def test_a_split_for_submission_and_a_checkpoint_without_a_padding_token(tmp_path):
    model, processor = load_tiny()
    processor.tokenizer.pad_token = None
    model.config.pad_token_id = model.generation_config.pad_token_id = None
    model.save_pretrained(tmp_path / "model"), processor.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model/tokenizer_config.json").read_text())
    assert saved.get("pad_token") is None
    ask(tmp_path / "data", rows(None, [None], [], more="x"))
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark/mine.yaml").write_text(
        "defaults: [dataset]\npath: data\nimage: null\nprompt: '{{ question }}'\nanswers: answers\nmax_new_tokens: 2\n"
        "metric: {_target_: cal_cli.evaluation.metrics.Mean, rule: exact_match, name: right}\n"
    )
    words = ["eval", "--config-dir", str(tmp_path), "benchmark=mine", "checkpoint=model", "batch_size=2"]
    told = " ".join(cal(*words, folder=tmp_path).stdout.split())
    assert "the split test has no right answers, so nothing is scored; predictions.jsonl has the model's 3" in told
    folder = tmp_path / "runs/eval/mine/model"
    assert len((folder / "predictions.jsonl").read_text().splitlines()) == 3
    assert json.loads((folder / "results.json").read_text())["metrics"] == {}
    assert "already evaluated" in cal(*words, folder=tmp_path).stdout
    refused = cal("report", f"compare=[{folder},{folder}]", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "is not scored, so it cannot be compared" in refused.stderr
    cal("train", "model=hf", "model.path=model", "data.n=8", "batch_size=4", folder=tmp_path)
