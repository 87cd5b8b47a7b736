"""Read finished runs into one table by condition, objective and seed, and compare answers to the same questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from cal_cli.data.noise_kinds import SWAP
from cal_cli.evaluation.metrics import Metric
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, read_lines
from cal_cli.runtime.runs import BEFORE_TRAINING, OPERATIONAL, find_completed_runs, flatten, read_config, read_summary
from cal_cli.statistics.bootstrap import (
    estimate_differences,
    estimate_differences_over_runs,
    run_group_test,
    sum_by_group,
)

# keys that are no part of a run's condition
VARIED = ("name", "seed", "noise", "objective", *OPERATIONAL)
AS_THE_RUN = "as the run"  # the value of a seed that is that of the run


@dataclass(frozen=True)
class Condition:
    """Under what runs were trained: objectives are compared with one another under the same condition."""

    settings: tuple[tuple[str, Any], ...]  # keys of the config in which the runs differ, and their values
    noise_kind: str  # `swap` for clean data, which are the same for every kind
    noise_ratio: float

    @property
    def name(self) -> str:
        """Settings and noise in words; the ratio alone for swapped conversations."""
        noise = f"{self.noise_ratio:g}" if self.noise_kind == SWAP else f"{self.noise_kind} {self.noise_ratio:g}"
        settings = [f"{key}={write_setting(value)}" for key, value in self.settings]
        return ", ".join([*settings, f"noise {noise}" if settings else noise])

    @property
    def order(self) -> tuple:
        """The place of the condition in a table."""
        values = [(0, value, "") if is_number(value) else (1, 0, str(value)) for _, value in self.settings]
        return *values, self.noise_kind != SWAP, self.noise_kind, self.noise_ratio


def is_number(value: Any) -> bool:
    """Return whether a value of a config is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_setting(value: Any) -> str:
    """Write a value of a config: a number in its shortest form, a path by its last three parts."""
    text = f"{value:g}" if is_number(value) else str(value)
    return "/".join(text.split("/")[-3:])


@dataclass
class Results:
    """Finished and evaluated runs.

    Attributes:
        table: a row for each run and metric, with `run`, its folder; `condition`; `objective`, its choice and the
            options in which runs of that choice differ, such as `cal window=9`; `seed`; `metric`; `value`; and `low`
            and `high`, its interval over images, nan if there is none.
        headline: the metrics that the benchmark reports first.
        unevaluated: the completed runs without results on the benchmark.
        before_training: the metrics of the checkpoint from which all runs started, as in `results.json`, with its name
            as `checkpoint`; empty if it has not been evaluated.
    """

    table: pd.DataFrame
    headline: list[str]
    unevaluated: list[Path]
    before_training: dict[str, Any]

    def select(self, metric: str) -> pd.DataFrame:
        """Return the rows of a metric."""
        return self.table[self.table["metric"] == metric]


def collect_results(folders: Sequence[str], benchmark: str, required: bool = True) -> Results:
    """Read every completed run in the folders and their subfolders.

    Raises:
        InputError: a folder is missing, nothing is evaluated although it is required, or two runs are of the same
            condition, objective and seed.
    """
    runs, unevaluated, rows = [], [], []
    headline: list[str] = []
    before: dict[str, Any] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise InputError(f"runs={folder}: there is no such folder")
        start = read_json(Path(folder) / BEFORE_TRAINING / "eval" / benchmark / "results.json", {})
        if start:  # the shipped checkpoint is named as on the command line, wherever it is installed
            name = str(start.get("checkpoint"))
            shipped = Path(name).parts[-3:] == ("cal_cli", "toy", "tiny")
            before = start.get("metrics", {}) | {"checkpoint": "checkpoint=tiny" if shipped else name}
        for run in find_completed_runs(Path(folder)):
            document = read_json(run / "eval" / benchmark / "results.json", {})
            if not document.get("metrics"):
                unevaluated.append(run)
                continue
            summary, config = read_summary(run), read_config(run)
            first = read_config(get_projector_run(config)).get("objective")  # of its first stage, named if it differs
            differs = first not in (None, config["objective"])
            first_stage = {"stage_1": read_summary(get_projector_run(config))["objective"]} if differs else {}
            runs.append((run, summary, flatten(config["objective"]) | first_stage, config))
            headline = headline or document.get("settings", {}).get("benchmark", {}).get("headline") or []
            for metric, found in document["metrics"].items():
                low, high = found.get("ci95") or (np.nan, np.nan)
                rows.append([run, metric, found["value"], low, high])
    if required and not runs:
        raise InputError(
            f"runs={','.join(folders)}: no completed run with results on {benchmark}; "
            f"run cal eval benchmark={benchmark} checkpoint={folders[0]} first"
        )
    table = pd.DataFrame(rows, columns=["run", "metric", "value", "low", "high"])
    table = describe_runs(runs).merge(table, on="run", sort=False)
    return Results(table, [name for name in headline if name in set(table["metric"])], unevaluated, before)


def describe_runs(runs: Sequence[tuple[Path, dict, dict, dict]]) -> pd.DataFrame:
    """Tabulate what distinguishes runs: `run`, `condition`, `objective` and `seed`, in the order of the conditions.

    Each run is given as its folder, its summary, the options of its objective, and its config.

    Raises InputError if two are of the same condition, objective and seed.
    """
    settings = [flatten(select_settings(config)) for *_, config in runs]
    names = dict.fromkeys(name for one in settings for name in one)
    differing = [name for name in names if len({str(one.get(name)) for one in settings}) > 1]
    rows: dict[tuple, list] = {}
    for (run, summary, options, _), own in zip(runs, settings, strict=True):
        same = [other for _, other_summary, other, _ in runs if other_summary["objective"] == summary["objective"]]
        varied = [f"{key}={value}" for key, value in options.items() if any(o.get(key) != value for o in same)]
        objective = " ".join([summary["objective"], *varied])
        values = [own.get(name) for name in differing]
        plain = [value if value is None or isinstance(value, int | float) else str(value) for value in values]
        noise = summary["noise"]
        kind = noise.get("kind", SWAP) if noise["ratio"] else SWAP
        condition = Condition(tuple(zip(differing, plain, strict=True)), kind, noise["ratio"])
        place = (condition, objective, summary["seed"])
        if place in rows:
            raise InputError(
                f"{run} and {rows[place][0]} have the same objective, noise, seed and settings: "
                "give runs=... without one of them"
            )
        rows[place] = [run, *place]
    table = pd.DataFrame(rows.values(), columns=["run", "condition", "objective", "seed"])
    order = sorted(table.index, key=lambda row: (table["condition"][row].order, *table.loc[row, ["objective", "seed"]]))
    return table.loc[order].reset_index(drop=True)


def select_settings(config: dict) -> dict:
    """Return the part of a config that makes a run's condition, without what is as in every run by default."""
    kept = {key: value for key, value in config.items() if key not in VARIED}
    if kept["data"].get("seed") == config["seed"]:  # the default: the seed of the data is that of the run
        kept["data"] = {**kept["data"], "seed": AS_THE_RUN}
    noise_seed = config["noise"].get("seed", config["seed"])
    kept["noise"] = {"seed": AS_THE_RUN if noise_seed == config["seed"] else noise_seed}
    before = read_config(get_projector_run(config))
    if before:  # whatever its folder
        kept["model"] = {**kept["model"], "projector": select_settings(before)}
    return kept


def get_projector_run(config: dict) -> Path:
    """Return the run of `stage=pretrain` whose projector a run started from; a missing folder if there was none."""
    return Path(config.get("model", {}).get("projector") or "none").parent


def choose_baseline(table: pd.DataFrame, given: str | None) -> str:
    """Return the objective that others are compared with: the given one; else `ce`, or the first if no run has `ce`.

    Raises InputError if no run has the given one.
    """
    objectives = sorted(set(table["objective"]))
    if given is None:
        return "ce" if "ce" in objectives else objectives[0]
    if given not in objectives:
        raise InputError(f"baseline={given}: no run has this objective; there are {', '.join(objectives)}")
    return given


def group_runs(table: pd.DataFrame, baseline: str) -> list[tuple[Condition, str, pd.DataFrame]]:
    """Group rows by condition and objective, in the order of the conditions, the baseline first."""
    grouped = [
        (condition, name, rows) for (condition, name), rows in table.groupby(["condition", "objective"], sort=False)
    ]
    return sorted(grouped, key=lambda group: (group[0].order, group[1] != baseline, group[1]))


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
        `differences`: each value of `second` minus that of `first` with its 95 % interval by a bootstrap over images,
        which are drawn for both together (None for a single image); `test`: that of `run_group_test` over
        images; `n`: the number of questions. None if one folder has no predictions, as from another engine.

    Raises InputError if they do not answer the same questions.
    """
    found = load_answers([first, second])
    if found is None:
        return None
    parts, scores, images, metric = found
    differences = None
    if len(set(images)) > 1:
        differences = estimate_differences(metric.compute, parts[1], parts[0], images)
    return {"differences": differences, "test": run_group_test(scores[0], scores[1], images), "n": len(images)}


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
    parts, _, images, metric = found
    return estimate_differences_over_runs(metric.compute, parts[len(first) :], parts[: len(first)], images)


def load_answers(folders: Sequence[Path]) -> tuple[list, list, list[str], Metric] | None:
    """Load the answers in folders with results to the same questions.

    Returns:
        For each folder the parts, and the scores, of its answers; the image of each question; the metric. None if a
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
    images = [line["picture"] for line in answers[0]]
    if "metric" not in results[-1]:
        raise InputError(
            f"{folders[-1]}: its results.json does not name its metric; run cal eval with force=true again"
        )
    metric = build(OmegaConf.create({"metric": results[-1]["metric"]}), "metric")
    for folder, found in zip(folders, parts, strict=True):
        try:
            metric.compute({name: column.sum() for name, column in sum_by_group(found, images).items()})
        except KeyError as error:
            raise InputError(f"{folder}: was scored by another version of cal_cli; run cal eval again") from error
    return parts, scores, images, metric


def describe_test(test: dict) -> str:
    """Describe the test of `compare` in a sentence."""
    counts = ""
    if test["only_first"] is not None:
        counts = f"Right in the first only {test['only_first']}, in the second only {test['only_second']}. "
    return f"{counts}Permutation test over images: p = {test['p']:.3g}."
