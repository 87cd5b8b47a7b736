"""The tables of a report: the headline, means over seeds, and differences to a baseline on the same questions."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from cal_cli.reporting.results import EvaluatedRun, Results, compare, group_runs, stack_scores
from cal_cli.runtime.console import make_table
from cal_cli.runtime.errors import InputError
from cal_cli.statistics.seeds import adjust_for_family, count_wins, estimate_over_runs, format_interval

POWER = 0.8416  # standard errors beyond the critical value at which a test has a power of 80 %


def summarize_results(results: Results, metrics: Sequence[str], baseline: str) -> list[dict[str, Any]]:
    """Summarise metrics, see `summarize_metric`, with p values that Holm's correction adjusts for all rows together."""
    runs: dict[Any, EvaluatedRun] = {run.folder: run for run in results.runs}
    rows = [
        row
        for metric in metrics
        for row in summarize_metric(results.select(metric), metric, baseline, runs | results.starts)
    ]
    for kind in ("difference", "gain"):
        tested = [row[kind] for row in rows if row[kind] and row[kind]["p"] is not None]
        for difference, p in zip(tested, adjust_for_family([estimate["p"] for estimate in tested]), strict=True):
            difference["p_holm"] = p
    return rows


def summarize_metric(
    table: pd.DataFrame, metric: str, baseline: str, runs: Mapping[Any, EvaluatedRun] | None = None
) -> list[dict[str, Any]]:
    """Summarise a metric: for each condition and objective, the mean of its runs and the differences of two kinds.

    `difference` is that to the baseline, paired by seed; `gain` that to the checkpoint before training. Intervals are
    over runs and images (`estimate_over_runs`); where the answers of a run are not known, over seeds alone.

    Args:
        table: the rows of `Results.table` of the metric.
        metric: its name.
        baseline: an objective.
        runs: the evaluated runs by their folders, and the checkpoints before training by their names.

    Raises InputError if a run and that of the baseline do not answer the same questions.
    """
    rows: list[dict[str, Any]] = []
    known = runs or {}
    for condition, objective, group in group_runs(table, baseline):
        base = table[(table["condition"] == condition) & (table["objective"] == baseline)]
        pairs = group.merge(base, on="seed", suffixes=("", "_base")).sort_values("seed")
        compared = objective != baseline and len(pairs)
        rows.append(
            {
                "metric": metric,
                "condition": condition.name,
                "settings": dict(condition.settings),
                "noise_kind": condition.noise_kind,
                "noise_ratio": condition.noise_ratio,
                "objective": objective,
                "seeds": group["seed"].tolist(),
                "values": group["value"].tolist(),
                "mean": estimate_mean(group, metric, known),
                "difference": estimate_difference(pairs, metric, known) if compared else None,
                "gain": estimate_gain(group, metric, known),
            }
        )
    return rows


def find_starts(group: pd.DataFrame) -> list[Any] | None:
    """Return the checkpoint that each run started from; None if one is not known."""
    return group["start"].tolist() if group["start"].notna().all() else None


def estimate_mean(group: pd.DataFrame, metric: str, runs: Mapping[Any, EvaluatedRun]) -> dict[str, Any]:
    """Estimate the mean of a metric over runs; a single one has the interval of its `results.json`."""
    scores = stack_scores([runs.get(run) for run in group["run"]], metric)
    mean = estimate_over_runs(group[["value"]].to_numpy() if scores is None else scores, find_starts(group))
    if len(group) == 1:
        low, high = group[["low", "high"]].to_numpy()[0].tolist()
        mean["ci95"] = None if np.isnan(low) else [low, high]
    return {key: mean[key] for key in ("value", "ci95", "n")}


def estimate_difference(pairs: pd.DataFrame, metric: str, runs: Mapping[Any, EvaluatedRun]) -> dict[str, Any]:
    """Estimate the mean difference of runs to those of the baseline.

    Args:
        pairs: a row for each seed, with `run`, `value` and `start`, and `run_base` and `value_base` of the baseline.
        metric, runs: as in `summarize_metric`.

    Returns:
        As `estimate_over_runs`, and `spread`, the standard deviation over seeds (None for one), `wins` of `count_wins`,
        and `detectable`, the true difference that as many runs and images would show with a probability of 80 %.
    """
    sides = [[runs.get(run) for run in pairs[name]] for name in ("run", "run_base")]
    for run, base in zip(*sides, strict=True):
        if run and base and run.questions and base.questions and run.questions != base.questions:
            raise InputError(
                f"{base.folder} and {run.folder} do not answer the same questions: evaluate both with the same "
                "benchmark, prompt, data and limit"
            )
    scores = stack_scores([*sides[0], *sides[1]], metric)
    by_seed = (pairs["value"] - pairs["value_base"]).tolist()
    compared = np.array(by_seed)[:, None] if scores is None else scores[: len(pairs)] - scores[len(pairs) :]
    difference = estimate_over_runs(compared, find_starts(pairs))
    half = difference["ci95"][1] - difference["value"] if difference["ci95"] else None
    return difference | {
        "spread": float(np.std(by_seed, ddof=1)) if len(by_seed) > 1 else None,
        "wins": count_wins(by_seed),
        "detectable": half + POWER * difference["error"] if half else None,
    }


def estimate_gain(group: pd.DataFrame, metric: str, runs: Mapping[Any, EvaluatedRun]) -> dict[str, Any] | None:
    """Estimate the mean difference of runs to the checkpoints that they started from; None without their answers."""
    starts = find_starts(group)
    if starts is None:
        return None
    scores = stack_scores([*(runs.get(run) for run in group["run"]), *(runs.get(start) for start in starts)], metric)
    return None if scores is None else estimate_over_runs(scores[: len(group)] - scores[len(group) :], starts)


def name_metric(metric: str) -> str:
    """Return the name of a metric in a table; the default world's headline metrics are named after their task."""
    return "captions" if metric == "scene_accuracy" else metric.removesuffix("_accuracy").replace("_", " ")


def name_condition(rows: Sequence[dict]) -> str:
    """Return the heading of the conditions: their noise, unless settings differ too."""
    return "condition" if any(row["settings"] for row in rows) else "noise"


def make_headline_table(rows: Sequence[dict], before_training: Mapping[str, Any], title: str) -> Table:
    """Make one table of all metrics: a row for each condition and objective, below the checkpoint before training.

    A cell is a mean and half of the width of its 95 % interval.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    several = any(len(row["seeds"]) > 1 for row in rows)
    names = [name_condition(rows), "objective", *(["seeds"] if several else []), *map(name_metric, metrics)]
    table = make_table(*names, title=title, whole=names[:2])

    digits = 3 if several else 2

    def write(value: float, interval: Sequence[float] | None) -> str:
        half = f" ±{max(interval[1] - value, value - interval[0]):.{digits}f}" if interval else ""
        return f"{value:.{digits}f}{half}"

    if set(metrics) <= before_training.keys():
        before = [before_training[metric] for metric in metrics]
        cells = [write(mean["value"], mean.get("ci95")) for mean in before]
        table.add_row("-", "before training", *(["-"] if several else []), *cells)
    by_place: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        by_place.setdefault((row["condition"], row["objective"]), {})[row["metric"]] = row
    for (condition, objective), of_metric in by_place.items():
        first = next(iter(of_metric.values()))
        cells = [write(row["mean"]["value"], row["mean"]["ci95"]) for row in of_metric.values()]
        table.add_row(condition, objective, *([str(len(first["seeds"]))] if several else []), *cells)
    return table


def describe_headline(rows: Sequence[dict], before_training: Mapping[str, Any], baseline: str) -> str:
    """Describe in a sentence what the first metric shows under the last condition; empty if nothing is compared."""
    metric, condition = rows[0]["metric"], rows[-1]["condition"]
    same = {row["objective"]: row for row in rows if (row["metric"], row["condition"]) == (metric, condition)}
    others = [row for name, row in same.items() if name != baseline]
    if baseline not in same or not others:
        return ""
    best = max(others, key=lambda row: row["mean"]["value"])
    start = before_training.get(metric)
    swapped = f"With {best['noise_ratio']:.0%} of the captions {'swapped' if best['noise_kind'] == 'swap' else 'wrong'}"
    named = swapped if best["noise_ratio"] and not best["settings"] else f"At {condition}"
    what = (
        "describes {:.0%} of the images fully correctly"
        if metric == "scene_accuracy"
        else f"{name_metric(metric)} is {{:.3f}}"
    )
    sentence = f"{named}: {best['objective']} {what.format(best['mean']['value'])}, {baseline} "
    shown = "{:.0%}" if metric == "scene_accuracy" else "{:.3f}"
    sentence += shown.format(same[baseline]["mean"]["value"])
    sentence += f", the checkpoint before training {shown.format(start['value'])}" if start else ""
    difference = format_interval(best["difference"], signed=True)
    return f"{sentence}. {best['objective']} minus {baseline}: {difference}."


def make_mean_tables(rows: Sequence[dict], baseline: str) -> dict[str, Table]:
    """Make a table for each metric, with a line between conditions, without columns that would be empty throughout."""
    tables = {}
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        of_it = list(of_metric)
        kinds = {f"minus {baseline}": "difference", "minus before training": "gain"}
        kinds = {header: kind for header, kind in kinds.items() if any(row[kind] for row in of_it)}
        tests = ["p", "p, Holm", "detectable"] if any((row["difference"] or {}).get("p") for row in of_it) else []
        headers = (name_condition(rows), "objective", "seeds", "mean", *kinds, *tests)
        table = make_table(*headers, title=metric.replace("_", " "), whole=("objective", "seeds", *tests))
        for condition, section in groupby(of_it, key=lambda row: row["condition"]):
            for row in section:
                difference, seeds = row["difference"] or {}, str(len(row["seeds"]))
                if difference and difference["n"] != len(row["seeds"]):  # the difference has only the seeds of both
                    seeds += f" ({difference['n']} paired)"
                found_values = [difference.get(key) for key in ("p", "p_holm", "detectable")][: len(tests)]
                cells = [format_interval(row[kind], True) for kind in kinds.values()]
                cells += ["-" if value is None else f"{value:.2g}" for value in found_values]
                table.add_row(condition, row["objective"], seeds, format_interval(row["mean"]), *cells)
            table.add_section()
        tables[metric] = table
    return tables


def compare_runs(runs: pd.DataFrame, benchmark: str, baseline: str) -> list[dict]:
    """Compare single runs with the baseline's of the same condition and seed, question by question; see `compare`.

    Where there are several seeds, they are compared together: see `estimate_difference`.
    """
    base = runs[runs["objective"] == baseline].set_index(["condition", "seed"])["run"].to_dict()
    pairs = []
    for condition, objective, group in group_runs(runs[runs["objective"] != baseline], baseline):
        for seed, run in zip(group["seed"].tolist(), group["run"], strict=True) if len(group) == 1 else ():
            other = base.get((condition, seed))
            comparison = None if other is None else compare(other / "eval" / benchmark, run / "eval" / benchmark)
            if comparison is not None and comparison["differences"] is not None:
                key: dict[str, Any] = {"condition": condition.name, "settings": dict(condition.settings)}
                key |= {"noise_kind": condition.noise_kind, "noise_ratio": condition.noise_ratio}
                pairs.append(key | {"objective": objective, "seed": seed} | comparison)
    return pairs


def make_pair_table(pairs: Sequence[dict], metrics: Sequence[str], baseline: str) -> Table:
    """Make the table of `compare_runs`, a row for each value: six metrics side by side do not fit on a terminal.

    `right alone` counts questions of the run, then of the baseline.
    """
    whole = ["objective", "seed", "", f"minus {baseline}"]
    table = make_table(name_condition(pairs), *whole, title="the same questions", whole=whole)
    for pair in pairs:
        test, differences = pair["test"], pair["differences"]
        values = {name.replace("_", " "): format_interval(differences[name], signed=True) for name in metrics}
        if test["only_first"] is not None:
            values["right alone"] = f"{test['only_second']} : {test['only_first']}"
        values["p, all scores"] = f"{test['p']:.2g}"
        of_pair = [pair["condition"], pair["objective"], str(pair["seed"])]
        for name, value in values.items():
            table.add_row(*of_pair, name, value)
            of_pair = ["", "", ""]
        table.add_section()
    return table
