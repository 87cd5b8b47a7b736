"""The files of an evaluation: `results.json`, `predictions.jsonl` and `parts.jsonl`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.runtime.files import read_json, write_whole
from cal_cli.runtime.provenance import get_versions
from cal_cli.statistics.bootstrap import estimate_values


def load_results(folder: Path, settings: dict[str, Any]) -> tuple[dict | None, list[str]]:
    """Load the results of a folder, or None, and the keys of the settings in which they differ from these."""
    results = read_json(folder / "results.json")
    if results is None:
        return None, []
    before, now = results["settings"], json.loads(json.dumps(settings))
    return results, sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))


def save_results(folder: Path, results: dict[str, Any]) -> None:
    """Write `results.json`."""
    write_whole(folder / "results.json", json.dumps(results, indent=2) + "\n")


def score_answers(
    name: str, benchmark: Benchmark, texts: Sequence[str], facts: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Score answers, write the results into `folder` and return the contents of `results.json`.

    A question whose right answers are not known is not scored: `n` and the metrics do not include it, and
    `predictions.jsonl` has it with the score null.

    `parts.jsonl` has, for each question, its picture and what its answer adds to the sums of the metric; `metric` in
    `results.json` is the config of the metric. From these, two results can be compared. `facts` are recorded too.
    """
    known = [(question, text) for question, text in zip(benchmark.questions, texts, strict=True) if question.answers]
    asked = [question for question, _ in known]
    parts = benchmark.metric.score(asked, [text for _, text in known]) if known else []
    pictures = [question.picture or question.id for question in asked]
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
        {"id": question.id, "picture": picture, "parts": part}
        for question, picture, part in zip(asked, pictures, parts, strict=True)
    ]
    results = {
        "benchmark": name,
        "split": benchmark.split,
        "n": len(asked),
        "without_answers": len(benchmark.questions) - len(asked),
        "pictures": len(set(pictures)),
        "metrics": estimate_values(benchmark.metric.compute, parts, pictures, benchmark.metric.top) if parts else {},
        "metric": benchmark.metric_config,
        **facts,
        "data": benchmark.source,
        "versions": get_versions(),
    }
    for file, lines in (("predictions.jsonl", predictions), ("parts.jsonl", summands)):
        write_whole(folder / file, "".join(json.dumps(line) + "\n" for line in lines))
    save_results(folder, results)
    return results
