"""Compare two models' answers to the same questions: paired bootstrap, and McNemar's test."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cal_cli.evaluation.metrics import Metric
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, read_lines
from cal_cli.statistics.bootstrap import estimate_differences, run_mcnemar_test


def load_metric(results: dict[str, Any], folder: Path) -> Metric:
    """Build the metric that scored some results. Raises InputError if they do not name it."""
    if "metric" not in results:
        raise InputError(f"{folder}: its results.json does not name its metric; run cal eval with force=true again")
    return build(OmegaConf.create({"metric": results["metric"]}), "metric")


def load_predictions(folder: Path) -> list[dict[str, Any]] | None:
    """Load the scored lines of `predictions.jsonl`, joined with those of `parts.jsonl`; None if a file is missing."""
    files = [folder / "predictions.jsonl", folder / "parts.jsonl"]
    if not all(file.is_file() for file in files):
        return None
    lines = [read_lines(file) for file in files]
    scored = [line for line in lines[0] if line["score"] is not None]
    return [answer | parts for answer, parts in zip(scored, lines[1], strict=True)]


def compare(first: Path, second: Path) -> dict[str, Any] | None:
    """Compare the results in `second` with those in `first`.

    Args:
        first, second: folders with `results.json` and `predictions.jsonl` of one benchmark.

    Returns:
        `differences`: each value of `second` minus that of `first` with its 95 % interval by a bootstrap over pictures,
        which are drawn for both together (None for a single picture); `mcnemar`: McNemar's test over all questions,
        None if answers are not right or wrong; `n`: the number of questions. None if one folder has no predictions, as
        from another engine.

    Raises InputError if they do not answer the same questions.
    """
    one, two = (read_json(folder / "results.json") for folder in (first, second))
    answers = [load_predictions(folder) for folder in (first, second)]
    if [] in answers:
        raise InputError(f"{first} and {second}: a split without answers is not scored, so it cannot be compared")
    if answers[0] is None or answers[1] is None:
        return None
    asked = [[(line["id"], line["question"], line["answers"]) for line in lines] for lines in answers if lines]
    if one["benchmark"] != two["benchmark"] or asked[0] != asked[1]:
        raise InputError(
            f"{first} and {second} do not answer the same questions: give results of one benchmark with the same "
            "prompt, data and limit"
        )
    parts = [[line["parts"] for line in lines] for lines in answers if lines]
    scores = [[line["score"] for line in lines] for lines in answers if lines]
    pictures = [line["picture"] for line in answers[0]]
    differences = None
    if len(set(pictures)) > 1:
        differences = estimate_differences(load_metric(two, second).compute, parts[1], parts[0], pictures)
    return {"differences": differences, "mcnemar": run_mcnemar_test(*scores), "n": len(pictures)}


def describe_mcnemar(test: dict | None) -> str:
    """Describe McNemar's test in a sentence."""
    if test is None:
        return "Answers are not simply right or wrong: no McNemar test."
    return (
        f"Right in the first only {test['only_first']}, in the second only {test['only_second']}: McNemar's exact "
        f"test, p = {test['p']:.3g}."
    )
