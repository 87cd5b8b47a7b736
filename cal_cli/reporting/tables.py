"""The tables of a report: means over seeds, and differences to a baseline on the same questions."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from cal_cli.reporting.results import Result, compare, compare_over_runs
from cal_cli.runtime.console import make_table
from cal_cli.statistics.seeds import adjust_for_family, difference_over_seeds, format_interval, mean_over_seeds


def summarize_metric(
    table: pd.DataFrame, metric: str, baseline: str, together: Mapping[tuple, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Summarise a metric: for each condition and objective, the mean over seeds and the difference to the baseline.

    `table` is that of `tabulate_metric`; differences are paired by seed. `together` has the differences of
    `compare_seeds`. `p_holm` adjusts the p values of all differences of the metric.
    """
    rows = []
    for (condition, objective), group in table.groupby(["condition", "objective"], sort=False):
        base = table[(table["condition"] == condition) & (table["objective"] == baseline)]
        values = dict(zip(group["seed"].tolist(), group["value"].tolist(), strict=True))
        base_values = dict(zip(base["seed"].tolist(), base["value"].tolist(), strict=True))
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
                "difference": None if objective == baseline else difference_over_seeds(values, base_values),
                "over_seeds_and_questions": (together or {}).get((condition, objective), {}).get(metric),
            }
        )
    compared = [row["difference"] for row in rows if row["difference"]]
    for difference, p in zip(compared, adjust_for_family([one["p"] for one in compared]), strict=True):
        difference["p_holm"] = p
    return rows


def make_mean_tables(rows: Sequence[dict], baseline: str) -> dict[str, Table]:
    """Make a table for each metric, with a line between conditions."""
    tables = {}
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        first = "condition" if any(row["settings"] for row in rows) else "noise"
        headers = (first, "objective", "seeds", "mean", f"minus {baseline}", "p", "p, Holm", "detectable")
        table = make_table(*headers, title=metric.replace("_", " "), whole=("objective", "seeds", *headers[5:]))
        for condition, section in groupby(of_metric, key=lambda row: row["condition"]):
            for row in section:
                found, mean = row["difference"], format_interval(row["mean"])
                difference = format_interval(row["over_seeds_and_questions"] or found, signed=True)
                seeds = str(len(row["seeds"]))
                if found and found["n"] != len(row["seeds"]):  # the difference has only the seeds of both
                    seeds += f" ({found['n']} paired)"
                tests = ["-", "-", "-"]
                if found and found["n"] > 1:
                    detectable = found["detectable"]
                    tests = [f"{found['p']:.2g}", f"{found['p_holm']:.2g}", f"{detectable:.3f}" if detectable else "-"]
                table.add_row(condition, row["objective"], seeds, mean, difference, *tests)
            table.add_section()
        tables[metric] = table
    return tables


def compare_seeds(results: Sequence[Result], benchmark: str, baseline: str) -> dict[tuple, dict[str, Any]]:
    """Compare all seeds of an objective with the baseline's together, by condition and objective.

    See `compare_over_runs`; what it cannot compare is left out.
    """
    runs: dict[tuple, dict[int, Path]] = {}
    for result in results:
        runs.setdefault((result.condition, result.objective), {})[result.seed] = result.run / "eval" / benchmark
    found: dict[tuple, dict[str, Any]] = {}
    for (condition, objective), folders in runs.items():
        base = runs.get((condition, baseline), {})
        shared = sorted(folders.keys() & base.keys())
        if objective != baseline and shared:
            together = compare_over_runs([base[seed] for seed in shared], [folders[seed] for seed in shared])
            found |= {} if together is None else {(condition, objective): together}
    return found


def compare_runs(results: Sequence[Result], benchmark: str, baseline: str) -> list[dict]:
    """Compare each run with the baseline's run of the same condition and seed, on the same questions; see `compare`."""
    base = {(r.condition, r.seed): r for r in results if r.objective == baseline}
    pairs = []
    for result in sorted(results, key=lambda r: (r.condition.order, r.objective, r.seed)):
        other = base.get((result.condition, result.seed))
        if other is None or other is result:
            continue
        found = compare(other.run / "eval" / benchmark, result.run / "eval" / benchmark)
        if found is not None and found["differences"] is not None:
            condition = result.condition
            key: dict[str, Any] = {"condition": condition.name, "settings": dict(condition.settings)}
            key |= {"noise_kind": condition.noise_kind, "noise_ratio": condition.noise_ratio}
            key |= {"objective": result.objective, "seed": result.seed}
            pairs.append(key | found)
    return pairs


def make_pair_table(pairs: Sequence[dict], metrics: Sequence[str], baseline: str) -> Table:
    """Make the table of `compare_runs`, a row for each value: six metrics side by side do not fit on a terminal.

    `right alone` counts questions of the run, then of the baseline.
    """
    first = "condition" if any(pair["settings"] for pair in pairs) else "noise"
    whole = ["objective", "seed", "", f"minus {baseline}"]
    table = make_table(first, *whole, title="the same questions", whole=whole)
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
