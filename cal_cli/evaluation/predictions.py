"""Answers that were given elsewhere, by another engine or behind an interface, to be scored here."""

import json
from collections.abc import Sequence
from pathlib import Path

from cal_cli.errors import InputError
from cal_cli.evaluation.questions import Question


def read_predictions(path: Path, questions: Sequence[Question], beyond: bool = False) -> list[str]:
    """The answers to questions, in their order, from JSON lines `{id, prediction}` such as `predictions.jsonl` has.

    Args:
        path: the file; what else a line has is passed over.
        questions: each needs an answer, found by its id.
        beyond: whether the file may answer other questions too.

    Raises:
        InputError: a line is malformed, or its questions are not these.
    """
    known = {question.id for question in questions}
    answers: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
            identity, text = str(found["id"]), found["prediction"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"predictions={path}: line {number} is no JSON object with id and prediction") from error
        if not isinstance(text, str):
            raise InputError(f"predictions={path}: line {number}: the prediction {text!r} is no text")
        if identity in answers:
            raise InputError(f"predictions={path}: line {number} answers question {identity!r} a second time")
        answers[identity] = text
        if identity not in known and not beyond:
            raise InputError(
                f"predictions={path}: line {number} answers {identity!r}, which is no question of this benchmark and "
                f"split; its questions are named as {questions[0].id!r} is"
            )
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise InputError(
            f"predictions={path}: no answer to {len(missing)} of {len(questions)} questions, the first of them "
            f"{missing[0]!r}; what was not answered is written as an empty prediction"
        )
    return [answers[question.id] for question in questions]
