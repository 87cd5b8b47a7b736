"""Compare models' answers to the same questions: paired bootstrap, and a permutation test."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from cal_cli.evaluation.metrics import Metric
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, read_lines
from cal_cli.statistics.bootstrap import (
    estimate_differences,
    estimate_differences_over_runs,
    run_group_test,
    sum_by_group,
)


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
        which are drawn for both together (None for a single picture); `test`: that of `run_group_test` over
        pictures; `n`: the number of questions. None if one folder has no predictions, as from another engine.

    Raises InputError if they do not answer the same questions.
    """
    found = load_answers([first, second])
    if found is None:
        return None
    parts, scores, pictures, metric = found
    differences = None
    if len(set(pictures)) > 1:
        differences = estimate_differences(metric.compute, parts[1], parts[0], pictures)
    return {"differences": differences, "test": run_group_test(scores[0], scores[1], pictures), "n": len(pictures)}


def compare_over_runs(first: Sequence[Path], second: Sequence[Path]) -> dict[str, dict[str, Any]] | None:
    """Compare the results in several folders `second` with those in `first`, pair by pair, over all pairs together.

    Returns:
        That of `estimate_differences_over_runs`; None if the runs do not answer the same questions, or some have no
        predictions.
    """
    try:
        found = load_answers([*first, *second])
    except InputError:  # other questions in other runs
        return None
    if found is None:
        return None
    parts, _, pictures, metric = found
    return estimate_differences_over_runs(metric.compute, parts[len(first) :], parts[: len(first)], pictures)


def load_answers(folders: Sequence[Path]) -> tuple[list, list, list[str], Metric] | None:
    """Load the answers in folders with results to the same questions.

    Returns:
        For each folder the parts, and the scores, of its answers; the picture of each question; the metric. None if a
        folder has no predictions.

    Raises InputError if the folders do not answer the same questions, or the metric needs other parts than theirs.
    """
    results, answers = [read_json(folder / "results.json") for folder in folders], []
    for folder in folders:
        lines = load_predictions(folder)
        if lines == []:
            raise InputError(f"{folder}: a split without answers is not scored, so it cannot be compared")
        if lines is None:
            return None
        answers.append(lines)
    asked = [[(line["id"], line["question"], line["answers"]) for line in lines] for lines in answers]
    for folder, result, questions in zip(folders, results, asked, strict=True):
        if result["benchmark"] != results[0]["benchmark"] or questions != asked[0]:
            raise InputError(
                f"{folders[0]} and {folder} do not answer the same questions: give results of one benchmark with the "
                "same prompt, data and limit"
            )
    parts = [[line["parts"] for line in lines] for lines in answers]
    scores = [[line["score"] for line in lines] for lines in answers]
    pictures = [line["picture"] for line in answers[0]]
    metric = load_metric(results[-1], folders[-1])
    for folder, found in zip(folders, parts, strict=True):
        try:
            metric.compute({name: column.sum() for name, column in sum_by_group(found, pictures).items()})
        except KeyError as error:
            raise InputError(f"{folder}: was scored by another version of cal_cli; run cal eval again") from error
    return parts, scores, pictures, metric


def describe_test(test: dict) -> str:
    """Describe the test of `compare` in a sentence."""
    counts = ""
    if test["only_first"] is not None:
        counts = f"Right in the first only {test['only_first']}, in the second only {test['only_second']}. "
    return f"{counts}Permutation test over pictures: p = {test['p']:.3g}."
