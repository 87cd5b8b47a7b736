"""The files of an evaluation: `results.json`, `predictions.jsonl`, `parts.jsonl`, and answers of an unfinished one."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.metrics import UNREADABLE, Question
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import begin_work, find_differences, read_json, write_json, write_whole
from cal_cli.runtime.runs import flatten, get_versions
from cal_cli.statistics.bootstrap import estimate_values


def load_results(folder: Path, settings: dict[str, Any]) -> tuple[dict | None, list[str]]:
    """Load the results of a folder, or None, and the keys of the settings in which they differ from these."""
    results = read_json(folder / "results.json")
    if results is None:
        return None, []
    # null options are those that earlier versions lack; there was a choice of engines once
    before, now = (
        {**given, "engine": None, "benchmark": flatten(given.get("benchmark", {}))}
        for given in (results["settings"], json.loads(json.dumps(settings)))
    )
    return results, find_differences(before, now)


def score_answers(
    name: str, benchmark: Benchmark, texts: Sequence[str], facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Score answers, write the results into `folder` and return the contents of `results.json`.

    A question whose right answers are not known is not scored: `n` and the metrics do not include it, and
    `predictions.jsonl` has it with the score null.

    `parts.jsonl` has, for each question, its image and what its answer adds to the sums of the metric; `metric` in
    `results.json` is the config of the metric. From these, two results can be compared. `facts` are recorded too.
    """
    known = [(question, text) for question, text in zip(benchmark.questions, texts, strict=True) if question.answers]
    asked = [question for question, _ in known]
    parts = benchmark.metric.score(asked, [text for _, text in known]) if known else []
    images = [question.image_name or question.id for question in asked]
    scores = {question.id: part["score"] for question, part in zip(asked, parts, strict=True)}
    predictions = [
        {
            "id": question.id,
            "question": question.question,
            "prediction": text,
            "answers": question.answers,
            "score": scores.get(question.id),
        }
        for question, text in zip(benchmark.questions, texts, strict=True)
    ]
    summands = [
        {"id": question.id, "picture": image, "parts": part}
        for question, image, part in zip(asked, images, parts, strict=True)
    ]
    results = {
        "benchmark": name,
        "split": benchmark.split,
        "n": len(asked),
        "without_answers": len(benchmark.questions) - len(asked),
        **({"unreadable": unreadable} if (unreadable := list(texts).count(UNREADABLE)) else {}),
        "pictures": len(set(images)),
        "metrics": estimate_values(benchmark.metric.compute, parts, images, benchmark.metric.top) if parts else {},
        "metric": benchmark.metric_config,
        **facts,
        "data": benchmark.source,
        "versions": get_versions(),
    }
    for file, lines in (("predictions.jsonl", predictions), ("parts.jsonl", summands)):
        write_whole(folder / file, "".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "results.json", results)
    return results


def read_predictions(path: Path, questions: Sequence[Question], beyond: bool = False) -> list[str]:
    """Read the answers to questions, in their order, from JSON lines `{id, prediction}` as in `predictions.jsonl`.

    With `beyond`, the file may answer other questions too. Other keys of a line are ignored, but `question` finds the
    answers of a published id that several questions share, or else their order does.

    Raises InputError if a line is malformed, a question has no answer or two, or a line answers another question.
    """
    known: dict[str, list[Question]] = {}
    for question in questions:
        for name in filter(None, (question.id, question.shared_id)):
            known.setdefault(name, []).append(question)
    answers: dict[str, str] = {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            document = json.loads(line)
            identity, text = str(document["id"]), document["prediction"]
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"predictions={path}: line {number} is not a JSON object with id and prediction"
            ) from error
        if not isinstance(text, str):
            raise InputError(f"predictions={path}: line {number}: the prediction {text!r} is not a text")
        left = [question for question in known.get(identity, []) if question.id not in answers]
        if identity in known and not left:
            raise InputError(f"predictions={path}: line {number} answers question {identity!r} a second time")
        asked = [question for question in left if question.question == document.get("question")]
        for question in (asked or left)[:1]:
            answers[question.id] = text
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


class AnswerLog:
    """The answers of an unfinished evaluation, in `<folder>/answers/`: a file for each process, a line for each answer.

    Answers with another identity (what they depend on) are discarded.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], process: int) -> None:
        self.folder, self.identity = folder / "answers", identity
        self.path = self.folder / f"{process}.jsonl"

    def begin(self, anew: bool) -> list[str]:
        """Discard the answers of another evaluation, or all; return in what it differs. For the first process alone."""
        return begin_work(self.folder, self.identity, anew)

    def read(self) -> dict[str, str]:
        """Read all answers so far, of all processes, by the ids of their questions; ignore incomplete lines."""
        answers = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for line in path.read_bytes().splitlines():
                try:
                    identity, text = json.loads(line)
                except ValueError:
                    continue
                answers[identity] = text
        return answers

    def add(self, answers: Mapping[str, str]) -> None:
        """Append answers, given by the ids of their questions."""
        lines = "".join(json.dumps([identity, text]) + "\n" for identity, text in answers.items())
        with self.path.open("a", encoding="utf-8") as file:
            if file.tell() and not self.path.read_bytes().endswith(b"\n"):
                file.write("\n")  # after an incomplete line
            file.write(lines)

    def close(self) -> None:
        """Remove the answers, which the results now contain."""
        shutil.rmtree(self.folder, ignore_errors=True)
