"""The files of an evaluation: `results.json`, `predictions.jsonl` and `parts.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cal_cli.config import command_line
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.intervals import with_intervals
from cal_cli.files import versions, write_whole


def read_results(folder: Path, told: dict[str, Any]) -> dict | None:
    """Results already there for the same settings, else None."""
    path = folder / "results.json"
    if not path.is_file():
        return None
    results = json.loads(path.read_text())
    return results if results["settings"] == told else None


def save_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")


def score(name: str, benchmark: Benchmark, texts: Sequence[str], facts: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Score answers, write the results into `folder` and return what `results.json` has.

    Beside it lie `predictions.jsonl` and `parts.jsonl`: of each question its picture and what its answer adds to the
    metric's sums, from which two results can be compared.

    Args:
        name: of the benchmark.
        benchmark: its questions and metric.
        texts: an answer a question.
        facts: what else is to be told.
        folder: of the results.
    """
    asked = benchmark.questions
    parts = benchmark.metric.parts(asked, texts)
    pictures = [question.picture or question.id for question in asked]
    predictions = [
        {
            "id": question.id,
            "question": question.question,
            "prediction": text,
            "answers": question.answers,
            "score": part["score"],
        }
        for question, text, part in zip(asked, texts, parts, strict=True)
    ]
    summands = [
        {"id": question.id, "picture": picture, "parts": part}
        for question, picture, part in zip(asked, pictures, parts, strict=True)
    ]
    results = {
        "benchmark": name,
        "split": benchmark.split,
        "n": len(asked),
        "pictures": len(set(pictures)),
        "metrics": with_intervals(benchmark.metric, parts, pictures),
        **facts,
        "data": benchmark.source,
        "versions": versions(),
        "command": command_line("eval"),
    }
    for file, lines in (("predictions.jsonl", predictions), ("parts.jsonl", summands)):
        write_whole(folder / file, "".join(json.dumps(line) + "\n" for line in lines))
    save_results(folder, results)
    return results
