"""Two models' answers to the same questions: paired bootstrap, and McNemar's test where answers are right or wrong."""

import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from cal_cli.config import build
from cal_cli.errors import InputError
from cal_cli.evaluation.intervals import mcnemar, paired_difference
from cal_cli.evaluation.metrics import Metric
from cal_cli.evaluation.scenes import Scenes
from cal_cli.files import write_whole
from cal_cli.reporting.collect import Result
from cal_cli.reporting.statistics import cell


def metric_of(results: dict[str, Any]) -> Metric:
    """The metric that scored some results."""
    node = results["settings"]["benchmark"]
    metric: Metric = build(OmegaConf.create(node), "metric") if "metric" in node else Scenes()
    return metric


def predictions_of(folder: Path) -> list[dict[str, Any]] | None:
    """The lines of `predictions.jsonl`, each with those of `parts.jsonl`; None where one of the files is missing."""
    files = [folder / "predictions.jsonl", folder / "parts.jsonl"]
    if not all(file.is_file() for file in files):
        return None
    lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
    return [answer | parts for answer, parts in zip(*lines, strict=True)]


def compare(first: Path, second: Path) -> dict[str, Any] | None:
    """What `second` has over `first`.

    Args:
        first, second: folders with `results.json` and `predictions.jsonl` of one benchmark.

    Returns:
        `differences`: each value of `second` less that of `first` with its 95 % interval by a bootstrap over pictures,
        drawn for both together; `mcnemar`: of all questions, None where answers are not right or wrong. None as a
        whole where one has no predictions, as of another engine.

    Raises:
        InputError: they do not answer the same questions.
    """
    one, two = (json.loads((folder / "results.json").read_text()) for folder in (first, second))
    answers = [predictions_of(folder) for folder in (first, second)]
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
    differences = paired_difference(metric_of(two), parts[1], parts[0], pictures) if len(set(pictures)) > 1 else None
    return {"differences": differences, "mcnemar": mcnemar(*scores), "n": len(pictures)}


def report_pair(given: list[str], output: Path, console: Console) -> None:
    """Compare two results on the same questions.

    Raises:
        InputError: not two folders with results on the same questions.
    """
    if len(given) != 2:
        raise InputError(
            f"compare=[{','.join(given)}]: give two folders with results.json, such as <run>/eval/<benchmark>"
        )
    for folder in given:
        if not (Path(folder) / "results.json").is_file():
            raise InputError(f"compare: no results.json in {folder}; give a folder that cal eval wrote")
    found = compare(Path(given[0]), Path(given[1]))
    if found is None or found["differences"] is None:
        raise InputError(f"compare: {' and '.join(given)} hold no predictions.jsonl of several pictures to draw from")
    table = Table("metric", "second minus first", title=f"{given[1]} minus {given[0]}", box=SIMPLE_HEAD, pad_edge=False)
    for metric, difference in found["differences"].items():
        table.add_row(metric.replace("_", " "), cell(difference, signed=True))
    console.print(table)
    console.print(f"{found['n']} questions; 95 % intervals by a paired bootstrap over their pictures. {told_of(found)}")
    write_whole(output / "compare.json", json.dumps({"first": given[0], "second": given[1], **found}, indent=2) + "\n")
    console.print(f"{output}: compare.json")


def told_of(pair: dict) -> str:
    """McNemar's test in a sentence."""
    test = pair["mcnemar"]
    if test is None:
        return "Answers are not right or wrong alone: no McNemar test."
    return (
        f"Right in the first alone {test['only_first']}, in the second alone {test['only_second']}: McNemar's exact "
        f"test, p = {test['p']:.3g}."
    )


def pairs_of(results: list[Result], benchmark: str, baseline: str) -> list[dict]:
    """Each run beside the baseline's of the same noise and seed: differences on the same questions, McNemar's test."""
    base = {(r.noise_ratio, r.seed): r for r in results if r.objective == baseline}
    pairs = []
    for result in sorted(results, key=lambda r: (r.noise_ratio, r.objective, r.seed)):
        other = base.get((result.noise_ratio, result.seed))
        if other is None or other is result:
            continue
        found = compare(other.run / "eval" / benchmark, result.run / "eval" / benchmark)
        if found is not None and found["differences"] is not None:
            told = {"noise_ratio": result.noise_ratio, "objective": result.objective, "seed": result.seed}
            pairs.append(told | found)
    return pairs


def pairs_table(pairs: list[dict], metrics: list[str], baseline: str) -> Table:
    """The pairs for a terminal."""
    table = Table(title=f"the same questions, minus {baseline}", box=SIMPLE_HEAD, pad_edge=False)
    for name in pair_headings(metrics):
        table.add_column(name)
    for pair in pairs:
        table.add_row(*pair_cells(pair, metrics))
    return table


def pair_headings(metrics: list[str]) -> list[str]:
    """The columns of the table of pairs."""
    return ["noise", "objective", "seed", *(metric.replace("_", " ") for metric in metrics), "right alone", "p"]


def pair_cells(pair: dict, metrics: list[str]) -> list[str]:
    """A row of the table of pairs as text; `right alone` has the run's questions first, then the baseline's."""
    test = pair["mcnemar"]
    last = [f"{test['only_second']} : {test['only_first']}", f"{test['p']:.2g}"] if test else ["-", "-"]
    differences = [cell(pair["differences"][metric], signed=True) for metric in metrics]
    return [f"{pair['noise_ratio']:g}", pair["objective"], str(pair["seed"]), *differences, *last]
