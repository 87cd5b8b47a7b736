"""Answers from elsewhere: the scores of what a checkpoint said, worked out by hand, and files that do not fit."""

import json

import pytest

from cal_cli.evaluation.predictions import read_predictions
from cal_cli.evaluation.questions import Question
from cal_cli.runtime.errors import InputError
from tests.cal import cal
from tests.evaluation.fixtures import write

QUESTIONS = [Question(id=name, picture=None, question="?", answers=["a"], images=list) for name in ("7", "8")]


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
    for words in (["checkpoint=tiny"], ["launch=ddp", "launch.processes=2"], ["engine=lmms_eval"]):
        result = cal("eval", f"predictions={path}", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and "leave checkpoint, engine and launch out" in result.stderr
    result = cal("eval", "predictions=none.jsonl", folder=tmp_path, check=False)
    assert result.returncode == 2 and "predictions=none.jsonl: there is no such file" in result.stderr
