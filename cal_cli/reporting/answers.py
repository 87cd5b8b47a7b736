"""Evaluated runs with the scores of their answers by image, read from run folders or from the two files of a report.

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
import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from cal_cli.evaluation.metrics import Metric
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import read_json, read_lines, write_parquet
from cal_cli.runtime.runs import BEFORE_TRAINING, find_completed_runs, find_start, name_start, read_config, read_summary
from cal_cli.statistics.bootstrap import sum_by_group
from cal_cli.statistics.seeds import score_groups

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
