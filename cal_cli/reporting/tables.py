"""The tables of a report: the headline, means over seeds, and differences to a baseline on the same questions."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from cal_cli.reporting.results import compare, compare_over_runs, group_runs
from cal_cli.runtime.console import make_table
from cal_cli.statistics.seeds import adjust_for_family, difference_over_seeds, format_interval, mean_over_seeds


def summarize_metric(
    table: pd.DataFrame, metric: str, baseline: str, together: Mapping[tuple, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Summarise a metric: for each condition and objective, the mean over seeds and the difference to the baseline.

    `table` has the rows of `Results.table` of the metric; differences are paired by seed. `together` has the
    differences of `compare_seeds`. `p_holm` adjusts the p values of all differences of the metric. `over_images` is
    the interval over images of a single run.
    """
    rows: list[dict[str, Any]] = []
    for condition, objective, group in group_runs(table, baseline):
        base = table[(table["condition"] == condition) & (table["objective"] == baseline)]
        values, base_values = (dict(zip(part["seed"], part["value"], strict=True)) for part in (group, base))
        edges = group[["low", "high"]].to_numpy()[0].tolist() if len(group) == 1 and "low" in group else [np.nan] * 2
        rows.append(
            {
                "metric": metric,
                "condition": condition.name,
                "settings": dict(condition.settings),
                "noise_kind": condition.noise_kind,
                "noise_ratio": condition.noise_ratio,
                "objective": objective,
                "seeds": list(values),
                "values": list(values.values()),
                "mean": mean_over_seeds(list(values.values())),
                "over_images": None if np.isnan(edges).any() else edges,
                "difference": None if objective == baseline else difference_over_seeds(values, base_values),
                "over_seeds_and_questions": (together or {}).get((condition, objective), {}).get(metric),
            }
        )
    compared = [row["difference"] for row in rows if row["difference"]]
    for difference, p in zip(compared, adjust_for_family([one["p"] for one in compared]), strict=True):
        difference["p_holm"] = p
    return rows


def name_metric(metric: str) -> str:
    """Return the name of a metric in a table; the default world's headline metrics are named after their task."""
    return "captions" if metric == "scene_accuracy" else metric.removesuffix("_accuracy").replace("_", " ")


def name_condition(rows: Sequence[dict]) -> str:
    """Return the heading of the conditions: their noise, unless settings differ too."""
    return "condition" if any(row["settings"] for row in rows) else "noise"


def make_headline_table(rows: Sequence[dict], before_training: Mapping[str, Any], title: str) -> Table:
    """Make one table of all metrics: a row for each condition and objective, below the checkpoint before training.

    A cell is a mean and half of the width of its 95 % interval: over seeds, or over images for a single run.
    """
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    several = any(len(row["seeds"]) > 1 for row in rows)
    names = [name_condition(rows), "objective", *(["seeds"] if several else []), *map(name_metric, metrics)]
    table = make_table(*names, title=title, whole=names[:2])

    digits = 3 if any(row["mean"]["ci95"] for row in rows) else 2

    def write(value: float, interval: Sequence[float] | None) -> str:
        half = f" ±{max(interval[1] - value, value - interval[0]):.{digits}f}" if interval else ""
        return f"{value:.{digits}f}{half}"

    if set(metrics) <= before_training.keys():
        found = [before_training[metric] for metric in metrics]
        cells = [write(one["value"], one.get("ci95")) for one in found]
        table.add_row("-", "before training", *(["-"] if several else []), *cells)
    by_place: dict[tuple[str, str], dict[str, dict]] = {}
    for row in rows:
        by_place.setdefault((row["condition"], row["objective"]), {})[row["metric"]] = row
    for (condition, objective), of_metric in by_place.items():
        first = next(iter(of_metric.values()))
        cells = [write(row["mean"]["value"], row["mean"]["ci95"] or row["over_images"]) for row in of_metric.values()]
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
    difference = best["over_seeds_and_questions"] or best["difference"]
    return f"{sentence}. {best['objective']} minus {baseline}: {format_interval(difference, signed=True)}."


def make_mean_tables(rows: Sequence[dict], baseline: str) -> dict[str, Table]:
    """Make a table for each metric, with a line between conditions, without columns that would be empty throughout."""
    tables = {}
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        found = list(of_metric)
        tested = [row["difference"] or {} for row in found]
        tests = ["p", "p, Holm"] if any(one.get("n", 1) > 1 for one in tested) else []
        tests += ["detectable"] if any(one.get("detectable") for one in tested) else []
        minus = [f"minus {baseline}"] if any(tested) else []
        headers = (name_condition(rows), "objective", "seeds", "mean", *minus, *tests)
        table = make_table(*headers, title=metric.replace("_", " "), whole=("objective", "seeds", *tests))
        for condition, section in groupby(found, key=lambda row: row["condition"]):
            for row in section:
                difference, seeds = row["difference"] or {}, str(len(row["seeds"]))
                if difference and difference["n"] != len(row["seeds"]):  # the difference has only the seeds of both
                    seeds += f" ({difference['n']} paired)"
                several, detectable = difference.get("n", 1) > 1, difference.get("detectable")
                cells = {
                    f"minus {baseline}": format_interval(row["over_seeds_and_questions"] or row["difference"], True),
                    "p": f"{difference['p']:.2g}" if several else "-",
                    "p, Holm": f"{difference['p_holm']:.2g}" if several else "-",
                    "detectable": f"{detectable:.3f}" if detectable else "-",
                }
                mean = format_interval(row["mean"])
                table.add_row(condition, row["objective"], seeds, mean, *(cells[name] for name in (*minus, *tests)))
            table.add_section()
        tables[metric] = table
    return tables


def compare_seeds(runs: pd.DataFrame, benchmark: str, baseline: str) -> dict[tuple, dict[str, Any]]:
    """Compare all seeds of an objective with the baseline's together, by condition and objective.

    `runs` has a row for each run. See `compare_over_runs`; what it cannot compare is left out.
    """
    places = {
        (condition, objective): {
            seed: run / "eval" / benchmark for seed, run in zip(group["seed"], group["run"], strict=True)
        }
        for condition, objective, group in group_runs(runs, baseline)
    }
    found: dict[tuple, dict[str, Any]] = {}
    for (condition, objective), folders in places.items():
        base = places.get((condition, baseline), {})
        shared = sorted(folders.keys() & base.keys())
        if objective != baseline and shared:
            together = compare_over_runs([base[seed] for seed in shared], [folders[seed] for seed in shared])
            found |= {} if together is None else {(condition, objective): together}
    return found


def compare_runs(runs: pd.DataFrame, benchmark: str, baseline: str) -> list[dict]:
    """Compare each run with the baseline's run of the same condition and seed, on the same questions; see `compare`."""
    base = runs[runs["objective"] == baseline].set_index(["condition", "seed"])["run"].to_dict()
    pairs = []
    for condition, objective, group in group_runs(runs[runs["objective"] != baseline], baseline):
        for seed, run in zip(group["seed"].tolist(), group["run"], strict=True):
            other = base.get((condition, seed))
            found = None if other is None else compare(other / "eval" / benchmark, run / "eval" / benchmark)
            if found is not None and found["differences"] is not None:
                key: dict[str, Any] = {"condition": condition.name, "settings": dict(condition.settings)}
                key |= {"noise_kind": condition.noise_kind, "noise_ratio": condition.noise_ratio}
                pairs.append(key | {"objective": objective, "seed": seed} | found)
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
