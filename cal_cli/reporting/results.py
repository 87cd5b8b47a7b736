"""Finished runs with the scores of their answers, in one table by condition, objective and seed, and compared.

`cal report` writes `runs.parquet` and `scores.parquet` beside its tables, which are computed from nothing else; a
folder with these two files is read like a folder of runs.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from cal_cli.data.noise_kinds import SWAP
from cal_cli.evaluation.metrics import Metric
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, read_lines, write_parquet
from cal_cli.runtime.runs import (
    BEFORE_TRAINING,
    OPERATIONAL,
    find_completed_runs,
    find_start,
    flatten,
    name_start,
    read_config,
    read_summary,
)
from cal_cli.statistics.bootstrap import run_group_test, sum_by_group
from cal_cli.statistics.seeds import estimate_over_runs, score_groups

RUNS, SCORES = "runs.parquet", "scores.parquet"
KEPT = ("benchmark", "metrics", "metric")  # of a run's results.json


@dataclass(frozen=True)
class EvaluatedRun:
    """A completed run, or the checkpoint that runs started from, with its results on one benchmark.

    Attributes:
        folder: its folder, or where that was when a report was written.
        summary, config: its `summary.json` and `config.yaml`; both empty for a checkpoint before training.
        projector: summary and config of the run whose projector it started from; empty if there was none.
        results: what is needed of its `results.json`; empty if it has not been evaluated.
        questions: a checksum of the questions that it answered; empty if its answers are not known.
        parts: the parts of its answers, summed by image in the order of `sum_by_group`, float64 [images].
    """

    folder: Path
    summary: Mapping[str, Any]
    config: Mapping[str, Any]
    projector: Mapping[str, Any]
    results: Mapping[str, Any]
    questions: str = ""
    parts: Mapping[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def scores(self) -> dict[str, np.ndarray]:
        """By metric the scores of images, float64 [images], see `score_groups`; empty if the answers are not known."""
        if not self.questions:
            return {}
        try:
            return score_groups(build_metric(self.folder, self.results).compute, self.parts)
        except KeyError as error:
            raise InputError(f"{self.folder}: was scored by another version of cal_cli; run cal eval again") from error


def stack_scores(runs: Sequence[EvaluatedRun | None], metric: str) -> np.ndarray | None:
    """Stack the scores of a metric, float64 [runs, images]; None unless all runs have answers to the same questions."""
    scores = [run.scores[metric] for run in runs if run is not None and metric in run.scores]
    same = len({run.questions for run in runs if run is not None}) == 1
    return np.stack(scores) if same and len(scores) == len(runs) else None


def build_metric(folder: Path, results: Mapping[str, Any]) -> Metric:
    """Build the metric that `results.json` names. Raises InputError if it names none."""
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


def load_run(folder: Path, benchmark: str, result_folder: Path | None = None) -> EvaluatedRun:
    """Load a run from its folder, or a checkpoint before training from that of its results."""
    place = result_folder or folder / "eval" / benchmark
    document = read_json(place / "results.json", {})
    results = {key: document[key] for key in KEPT if key in document}
    headline = document.get("settings", {}).get("benchmark", {}).get("headline")
    results |= {"headline": headline} if headline else {}
    summary, config = ({}, {}) if result_folder else (read_summary(folder), read_config(folder))
    first = Path(config.get("model", {}).get("projector") or "none").parent
    projector = {"summary": read_summary(first), "config": read_config(first)} if read_config(first) else {}
    lines = load_predictions(place) if results.get("metrics") and "metric" in results else None
    if not lines:
        return EvaluatedRun(folder, summary, config, projector, results)
    asked = json.dumps([[line["id"], line["question"], line["answers"]] for line in lines])
    parts = sum_by_group([line["parts"] for line in lines], [line["picture"] for line in lines])
    checksum = hashlib.sha256(asked.encode()).hexdigest()
    return EvaluatedRun(folder, summary, config, projector, results, checksum, parts)


def load_runs(folder: Path, benchmark: str) -> tuple[list[EvaluatedRun], dict[str, EvaluatedRun]]:
    """Load every completed run in a folder and its subfolders, or those that a report has written there.

    Returns the runs, and by its name each checkpoint before training that has been evaluated.

    Raises InputError if there is no such folder, or a file in it is damaged.
    """
    if not folder.is_dir():
        raise InputError(f"runs={folder}: there is no such folder")
    if (folder / RUNS).is_file():
        return read_stored(folder, benchmark)
    runs = [load_run(run, benchmark) for run in find_completed_runs(folder)]
    starts = {}
    for name in sorted({start for run in runs if (start := find_start(run.config))}):
        place = folder / BEFORE_TRAINING / name_start(name) / "eval" / benchmark
        if (place / "results.json").is_file():
            starts[name] = load_run(place, benchmark, place)
    return runs, starts


def store_runs(folder: Path, runs: Sequence[EvaluatedRun], starts: Mapping[str, EvaluatedRun]) -> None:
    """Write evaluated runs to `runs.parquet`, a row for each, and the parts of their answers to `scores.parquet`.

    The latter has a row for each image and run, an image's rows together; both are read again by `load_runs`.
    """
    named = [("", run) for run in runs] + list(starts.items())
    rows = [
        {"folder": str(run.folder), "start": start, "questions": run.questions, "parts": json.dumps(list(run.parts))}
        | {key: json.dumps(getattr(run, key)) for key in ("summary", "config", "projector", "results")}
        for start, run in named
    ]
    write_parquet(folder / RUNS, pa.Table.from_pylist(rows))
    tables = []
    for number, (_, run) in enumerate(named):
        count = len(next(iter(run.parts.values()), ()))
        columns = {"run": np.full(count, number, np.int32), "image": np.arange(count, dtype=np.int32), **run.parts}
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables, promote_options="default")
    write_parquet(folder / SCORES, table.sort_by([("image", "ascending"), ("run", "ascending")]))


def read_stored(folder: Path, benchmark: str) -> tuple[list[EvaluatedRun], dict[str, EvaluatedRun]]:
    """Read what `store_runs` has written."""
    try:
        rows, scores = pq.read_table(folder / RUNS).to_pylist(), pq.read_table(folder / SCORES)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"{folder}: {RUNS} or {SCORES} is missing or damaged ({error}): repeat the cal report that wrote them"
        ) from error
    order = np.argsort(scores["run"].to_numpy(), kind="stable")
    ends = np.cumsum(np.bincount(scores["run"].to_numpy(), minlength=len(rows)))
    runs, starts = [], {}
    for number, row in enumerate(rows):
        own = order[(ends[number - 1] if number else 0) : ends[number]]
        documents = {key: json.loads(row[key]) for key in ("summary", "config", "projector", "results", "parts")}
        parts = {name: scores[name].to_numpy()[own] for name in documents.pop("parts")}
        run = EvaluatedRun(Path(row["folder"]), **documents, questions=row["questions"], parts=parts)
        if (stored := run.results.get("benchmark", benchmark)) != benchmark:
            raise InputError(f"runs={folder}: has results on {stored}, not {benchmark}: give results={stored}")
        if row["start"]:
            starts[row["start"]] = run
        else:
            runs.append(run)
    return runs, starts


# keys that are no part of a run's condition
VARIED = ("name", "seed", "noise", "objective", *OPERATIONAL)
START = "model.path"  # the key of the checkpoint that a run starts from
AS_THE_RUN = "as the run"  # the value of a seed that is that of the run


@dataclass(frozen=True)
class Condition:
    """Under what runs were trained: objectives are compared with one another under the same condition."""

    settings: tuple[tuple[str, Any], ...]  # keys of the config in which the runs differ, and their values
    noise_kind: str  # `swap` for clean data, which are the same for every kind
    noise_ratio: float

    @property
    def name(self) -> str:
        """Settings that are given, and noise, in words; the ratio alone for swapped conversations."""
        noise = f"{self.noise_ratio:g}" if self.noise_kind == SWAP else f"{self.noise_kind} {self.noise_ratio:g}"
        settings = [f"{key}={write_setting(value)}" for key, value in self.settings if value is not None]
        return ", ".join([*settings, f"noise {noise}" if self.settings else noise])

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
            options in which runs of that choice differ, such as `cal window=9`; `seed`; `start`, the checkpoint that it
            started from; `metric`; `value`; and `low` and `high`, its interval over images, nan if there is none.
        headline: the metrics that the benchmark reports first.
        unevaluated: the completed runs without results on the benchmark.
        runs: the evaluated runs.
        starts: by name the checkpoints from which runs started, if they have been evaluated.
        tuned: sentences that list each objective's own values of the tuned keys.
    """

    table: pd.DataFrame
    headline: list[str]
    unevaluated: list[Path]
    runs: list[EvaluatedRun]
    starts: dict[str, EvaluatedRun]
    tuned: list[str]

    def select(self, metric: str) -> pd.DataFrame:
        """Return the rows of a metric."""
        return self.table[self.table["metric"] == metric]

    @property
    def before_training(self) -> dict[str, Any]:
        """The metrics of the checkpoints from which all runs started, and `checkpoint`, their names.

        Those of several are their means, with an interval over checkpoints and images. Empty if one has not been
        evaluated, or if runs are compared by their checkpoint.
        """
        names = sorted(set(self.table["start"])) if self.table["start"].notna().all() else []
        compared = any(key == START for key, _ in self.table["condition"].iloc[0].settings)
        if not names or compared or not self.starts.keys() >= set(names):
            return {}
        starts = [self.starts[name] for name in names]
        if len(starts) == 1:
            metrics = dict(starts[0].results["metrics"])
        else:
            scores = {name: stack_scores(starts, name) for name in starts[0].scores}
            metrics = {name: estimate_over_runs(stacked) for name, stacked in scores.items() if stacked is not None}
        return metrics | {"checkpoint": ", ".join(names)} if metrics else {}


def collect_results(
    folders: Sequence[str], benchmark: str, required: bool = True, tuned: Sequence[str] = ()
) -> Results:
    """Read every completed run in the folders and their subfolders.

    `tuned` are keys of the config that make no condition, as each objective has its own value.

    Raises InputError if a folder is missing, nothing is evaluated although it is required, two runs are of the same
    condition, objective and seed, or no run has a tuned key.
    """
    runs: list[EvaluatedRun] = []
    starts: dict[str, EvaluatedRun] = {}
    for folder in folders:
        of_folder, before = load_runs(Path(folder), benchmark)
        runs, starts = runs + of_folder, starts | before
    evaluated = [run for run in runs if run.results.get("metrics")]
    if required and not evaluated:
        raise InputError(
            f"runs={','.join(folders)}: no completed run with results on {benchmark}; "
            f"run cal eval benchmark={benchmark} checkpoint={folders[0]} first"
        )
    rows = []
    for run in evaluated:
        for metric, estimate in run.results["metrics"].items():
            rows.append([run.folder, metric, estimate["value"], *(estimate.get("ci95") or (np.nan, np.nan))])
    table = pd.DataFrame(rows, columns=["run", "metric", "value", "low", "high"])
    described = describe_runs(evaluated, tuned)
    table = described.merge(table, on="run", sort=False)
    headline: list[str] = next((run.results["headline"] for run in evaluated if run.results.get("headline")), [])
    headline = [name for name in headline if name in set(table["metric"])]
    unevaluated = [run.folder for run in runs if not run.results.get("metrics")]
    return Results(table, headline, unevaluated, evaluated, starts, describe_tuned(described, evaluated, tuned))


def describe_runs(runs: Sequence[EvaluatedRun], tuned: Sequence[str] = ()) -> pd.DataFrame:
    """Tabulate what distinguishes runs: `run`, `condition`, `objective`, `seed` and `start`, ordered by condition.

    The checkpoint that runs started from makes no condition if it is the same for all runs of a seed: then it is a part
    of what varies with the seed.

    Raises InputError if two are of the same condition, objective and seed.
    """
    settings = [flatten(select_settings(run.config, run.projector.get("config"))) for run in runs]
    starts = {(run.summary["seed"], own.get(START)) for run, own in zip(runs, settings, strict=True)}
    if len(starts) == len({seed for seed, _ in starts}):
        settings = [{key: value for key, value in own.items() if key != START} for own in settings]
    names = dict.fromkeys(name for own in settings for name in own)
    differing = [name for name in names if len({str(own.get(name)) for own in settings}) > 1]
    if unknown := [key for key in tuned if key not in names]:
        raise InputError(
            f"tuned={unknown[0]}: no run has such a key; give one of its config.yaml, such as learning_rate"
        )
    differing = [name for name in differing if name not in tuned]
    options = [get_options(run) for run in runs]
    rows: dict[tuple, list] = {}
    for run, own, chosen in zip(runs, settings, options, strict=True):
        objective = run.summary["objective"]
        same = [other for peer, other in zip(runs, options, strict=True) if peer.summary["objective"] == objective]
        varied = [f"{key}={value}" for key, value in chosen.items() if any(other.get(key) != value for other in same)]
        values = [own.get(name) for name in differing]
        plain = [value if value is None or isinstance(value, int | float) else str(value) for value in values]
        noise = run.summary["noise"]
        kind = noise.get("kind", SWAP) if noise["ratio"] else SWAP
        condition = Condition(tuple(zip(differing, plain, strict=True)), kind, noise["ratio"])
        place = (condition, " ".join([objective, *varied]), run.summary["seed"])
        if place in rows:
            raise InputError(
                f"{run.folder} and {rows[place][0]} have the same objective, noise, seed and settings: "
                "give runs=... without one of them"
            )
        rows[place] = [run.folder, *place, find_start(run.config)]
    table = pd.DataFrame(rows.values(), columns=["run", "condition", "objective", "seed", "start"])
    order = sorted(table.index, key=lambda row: (table["condition"][row].order, *table.loc[row, ["objective", "seed"]]))
    return table.loc[order].reset_index(drop=True)


def describe_tuned(described: pd.DataFrame, runs: Sequence[EvaluatedRun], tuned: Sequence[str]) -> list[str]:
    """Describe for each tuned key the values of each objective under each condition; see `describe_runs`."""
    of_run = {run.folder: flatten(run.config) for run in runs}
    sentences = []
    for key in tuned:
        values: dict[str, dict[str, None]] = {}
        for run, condition, objective in described[["run", "condition", "objective"]].itertuples(index=False):
            where = condition.name if condition.settings else f"noise {condition.name}"
            values.setdefault(f"{objective} at {where}", {})[write_setting(of_run[run].get(key))] = None
        listed = ", ".join(f"{name}: {' and '.join(own)}" for name, own in values.items())
        sentences.append(f"Each objective has its own {key} ({listed}).")
    return sentences


def get_options(run: EvaluatedRun) -> dict[str, Any]:
    """Return the options of the objective of a run, with that of its first stage if it differs."""
    first = run.projector.get("config", {}).get("objective")
    differs = first not in (None, run.config["objective"])
    return flatten(run.config["objective"]) | ({"stage_1": run.projector["summary"]["objective"]} if differs else {})


def select_settings(config: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict:
    """Return the part of a run's config that makes its condition, without what is as in every run by default.

    `before` is the config of the run whose projector it started from, whatever its folder.
    """
    kept = {key: value for key, value in config.items() if key not in VARIED}
    if kept["data"].get("seed") == config["seed"]:  # the default: the seed of the data is that of the run
        kept["data"] = {**kept["data"], "seed": AS_THE_RUN}
    noise = config["noise"]
    seed = noise.get("seed", config["seed"])
    kept["noise"] = {key: noise.get(key) for key in ("words", "families")}
    kept["noise"]["seed"] = AS_THE_RUN if seed == config["seed"] else seed
    if before:
        kept["model"] = {**kept["model"], "projector": select_settings(before)}
    return kept


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


def compare(first: Path, second: Path) -> dict[str, Any] | None:
    """Compare the results in `second` with those in `first`, question by question.

    Args:
        first, second: folders with `results.json` and `predictions.jsonl` of one benchmark.

    Returns:
        `differences`: each value of `second` minus that of `first`, paired by image, by `estimate_over_runs` (None for
        a single image); `test`: that of `run_group_test` over images; `n`: the number of questions. None if one folder
        has no predictions, as from another engine.

    Raises InputError if they do not answer the same questions, or the metric needs other parts than theirs.
    """
    answers = [load_predictions(folder) for folder in (first, second)]
    for folder, lines in zip((first, second), answers, strict=True):
        if lines == []:
            raise InputError(f"{folder}: a split without answers is not scored, so it cannot be compared")
    first_answers, second_answers = answers
    if first_answers is None or second_answers is None:
        return None
    runs = [load_run(folder, "", folder) for folder in (first, second)]
    for run in runs:
        build_metric(run.folder, run.results)  # raises if it is not known
    if len({(run.results["benchmark"], run.questions) for run in runs}) > 1:
        raise InputError(
            f"{first} and {second} do not answer the same questions: give results of one benchmark with the same "
            "prompt, data and limit"
        )
    images = [line["picture"] for line in first_answers]
    names = runs[1].scores if len(set(images)) > 1 else ()
    differences = {name: estimate_over_runs((runs[1].scores[name] - runs[0].scores[name])[None]) for name in names}
    test = run_group_test([line["score"] for line in first_answers], [line["score"] for line in second_answers], images)
    return {"differences": differences or None, "test": test, "n": len(images)}
