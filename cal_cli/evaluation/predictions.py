"""Read answers that another engine generated, to be scored here."""

import json
from collections.abc import Sequence
from pathlib import Path

from cal_cli.evaluation.questions import Question
from cal_cli.runtime.errors import InputError


def read_predictions(path: Path, questions: Sequence[Question], beyond: bool = False) -> list[str]:
    """Read the answers to questions, in their order, from JSON lines `{id, prediction}` as in `predictions.jsonl`.

    With `beyond`, the file may answer other questions too. Other keys of a line are ignored.

    Raises InputError if a line is malformed, a question has no answer or two, or a line answers another question.
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
            raise InputError(
                f"predictions={path}: line {number} is not a JSON object with id and prediction"
            ) from error
        if not isinstance(text, str):
            raise InputError(f"predictions={path}: line {number}: the prediction {text!r} is not a text")
        if identity in answers:
            raise InputError(f"predictions={path}: line {number} answers question {identity!r} a second time")
        answers[identity] = text
        if identity not in known and not beyond:
            raise InputError(
                f"predictions={path}: line {number} answers {identity!r}, which is not a question of this benchmark "
                f"and split; the ids of its questions look like {questions[0].id!r}"
            )
    missing = [question.id for question in questions if question.id not in answers]
    if missing:
        raise InputError(
            f"predictions={path}: no answer to {len(missing)} of {len(questions)} questions, the first of them "
            f"{missing[0]!r}; write an empty prediction for a question that was not answered"
        )
    return [answers[question.id] for question in questions]
