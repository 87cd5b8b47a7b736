"""Answers from elsewhere: the scores of what a checkpoint said, worked out by hand, and files that do not fit."""

import json
import math

import datasets
import pytest
from omegaconf import OmegaConf
from PIL import Image

from cal_cli.evaluation.benchmark import Benchmark, make_benchmark
from cal_cli.evaluation.metrics import Question
from cal_cli.evaluation.results import read_predictions, score_answers
from cal_cli.reporting.results import compare
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny
from tests.cal import cal
from tests.evaluation.fixtures import picture, write

QUESTIONS = [Question(id=name, image_name=None, question="?", answers=["a"], images=list) for name in ("7", "8")]


def lines(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_what_a_checkpoint_said_scores_the_same_again(tmp_path):
    cal("eval", "checkpoint=tiny", "benchmark.n=4", folder=tmp_path)
    first = tmp_path / "runs/eval/scenes/tiny"
    cal("eval", f"predictions={first / 'predictions.jsonl'}", "benchmark.n=4", folder=tmp_path)
    again = tmp_path / "runs/eval/scenes/predictions"
    for file in ("predictions.jsonl", "parts.jsonl"):
        assert (first / file).read_text() == (again / file).read_text()
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (first, again))
    assert one["metrics"] == two["metrics"] and one["n"] == two["n"] == 24
    assert two["checkpoint"] is two["prompt"] is two["generation"] is None
    report = cal("report", f"compare=[{first},{again}]", folder=tmp_path).stdout
    assert "0.000" in report


def test_answers_to_pope_scored_by_hand(tmp_path):
    data = write("pope", tmp_path / "pope")
    cal("eval", "benchmark=pope", f"benchmark.path={data}", "checkpoint=tiny", folder=tmp_path)
    asked = [json.loads(line) for line in (tmp_path / "runs/eval/pope/tiny/predictions.jsonl").read_text().splitlines()]
    said = ["Yes", "no.", " NO", "yes"]  # a point makes it neither
    rows = [{"id": row["id"], "prediction": text, "model": "x"} for row, text in zip(asked, said, strict=True)]
    answers = lines(tmp_path / "other.v1.jsonl", *reversed(rows))
    words = ["eval", "benchmark=pope", f"benchmark.path={data}", f"predictions={answers}"]
    told = cal(*words, folder=tmp_path).stdout
    result = json.loads((tmp_path / "runs/eval/pope/other.v1/results.json").read_text())
    right = [row["answers"][0] for row in asked]
    agree = sum(one.strip().lower() == other for one, other in zip(said, right, strict=True))
    assert result["metrics"]["pope_accuracy"]["value"] == agree / 4 and f"{agree / 4:.3f}" in told
    assert result["metrics"]["answered_yes"]["value"] == 0.5
    assert "already evaluated" in cal(*words, folder=tmp_path).stdout
    lines(answers, *[row | {"prediction": "no"} for row in rows])
    assert "already evaluated" not in cal(*words, folder=tmp_path).stdout
    lines(answers, *rows[1:])
    result = cal(*words, folder=tmp_path, check=False)
    assert result.returncode == 2 and "no answer to 1 of 4" in result.stderr


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"id": 7, "prediction": "a"}], "no answer to 1 of 2 questions, the first of them '8'"),
        ([{"id": 9, "prediction": "a"}], "line 1 answers '9', which is not a question .* look like '7'"),
        ([{"id": 7, "prediction": "a"}, {"id": "7", "prediction": "b"}], "line 2 answers question '7' a second time"),
        ([{"id": 7, "prediction": ["a"]}], r"line 1: the prediction \['a'\] is not a text"),
        ([{"id": 7, "answer": "a"}], "line 1 is not a JSON object with id and prediction"),
        ([["7", "a"]], "line 1 is not a JSON object"),
    ],
)
def test_files_that_do_not_fit(tmp_path, rows, said):
    with pytest.raises(InputError, match=said):
        read_predictions(lines(tmp_path / "p.jsonl", *rows), QUESTIONS)


def test_with_a_limit_other_questions_may_be_answered_too(tmp_path):
    rows = [{"id": name, "prediction": f"{name}{name}"} for name in (9, 8, 7)]
    assert read_predictions(lines(tmp_path / "p.jsonl", *rows), QUESTIONS, beyond=True) == ["77", "88"]


def test_a_model_and_its_answers_are_not_asked_for_at_once(tmp_path):
    path = lines(tmp_path / "p.jsonl", {"id": 7, "prediction": "a"})
    for words in (["checkpoint=tiny"], ["launch=ddp", "launch.processes=2"]):
        result = cal("eval", f"predictions={path}", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and "leave checkpoint and launch out" in result.stderr
    result = cal("eval", "predictions=none.jsonl", folder=tmp_path, check=False)
    assert result.returncode == 2 and "predictions=none.jsonl: there is no such file" in result.stderr


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


@pytest.mark.parametrize("unknown", [None, [None, None], [], [""], "", " ", math.nan, [math.nan]])
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


def test_questions_that_lack_their_image_are_counted(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    rows = [{"image": name, "question": "what?", "answer": "red"} for name in ("a.png", None, "a.png")]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = lines(tmp_path / "p.jsonl", *({"id": str(number), "prediction": "red"} for number in range(3)))
    words = ["benchmark=dataset", "benchmark.path=test.jsonl", "benchmark.prompt='{{ question }}'"]
    words += [
        "benchmark.answers=answer",
        f"benchmark.metric={{_target_:{MEAN['_target_']},rule:exact_match,name:right}}",
    ]
    told = cal("eval", *words, f"predictions={path}", folder=tmp_path).stdout
    assert "1 of 3 questions have no image: they are text only" in told


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
