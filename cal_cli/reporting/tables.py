"""The tables of a report: means over seeds, and differences to a baseline on the same questions."""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import pandas as pd
from rich.table import Table

from cal_cli.data.noise import SWAP
from cal_cli.reporting.collect import Result, name_noise
from cal_cli.reporting.pairs import compare
from cal_cli.runtime.console import make_table
from cal_cli.statistics.seeds import difference_over_seeds, format_interval, mean_over_seeds


def summarize_metric(table: pd.DataFrame, metric: str, baseline: str) -> list[dict[str, Any]]:
    """Summarise a metric: for each noise and objective, the mean over seeds and the difference to the baseline.

    `table` is that of `tabulate_metric`; differences are paired by seed.
    """
    rows = []
    for (kind, ratio, objective), group in table.groupby(["kind", "ratio", "objective"], sort=False):
        base = table[(table["kind"] == kind) & (table["ratio"] == ratio) & (table["objective"] == baseline)]
        values = dict(zip(group["seed"].tolist(), group["value"].tolist(), strict=True))
        base_values = dict(zip(base["seed"].tolist(), base["value"].tolist(), strict=True))
        rows.append(
            {
                "metric": metric,
                "noise_kind": kind,
                "noise_ratio": ratio,
                "objective": objective,
                "seeds": list(values),
                "values": list(values.values()),
                "mean": mean_over_seeds(list(values.values())),
                "difference": None if objective == baseline else difference_over_seeds(values, base_values),
            }
        )
    return rows


def make_mean_tables(rows: Sequence[dict], baseline: str) -> dict[str, Table]:
    """Make a table for each metric, with a line between kinds and ratios of noise."""
    tables = {}
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        headers = ("noise", "objective", "seeds", "mean", f"minus {baseline}")
        table = make_table(*headers, title=metric.replace("_", " "))
        for noise, section in groupby(of_metric, key=lambda row: (row["noise_kind"], row["noise_ratio"])):
            for row in section:
                difference = format_interval(row["difference"], signed=True)
                mean = format_interval(row["mean"])
                table.add_row(name_noise(*noise), row["objective"], str(len(row["seeds"])), mean, difference)
            table.add_section()
        tables[metric] = table
    return tables


def compare_runs(results: Sequence[Result], benchmark: str, baseline: str) -> list[dict]:
    """Compare each run with the baseline's run of the same noise and seed, on the same questions; see `compare`."""
    base = {(r.noise, r.seed): r for r in results if r.objective == baseline}
    pairs = []
    for result in sorted(results, key=lambda r: (r.noise_kind != SWAP, r.noise, r.objective, r.seed)):
        other = base.get((result.noise, result.seed))
        if other is None or other is result:
            continue
        found = compare(other.run / "eval" / benchmark, result.run / "eval" / benchmark)
        if found is not None and found["differences"] is not None:
            key = {"noise_kind": result.noise_kind, "noise_ratio": result.noise_ratio}
            key |= {"objective": result.objective, "seed": result.seed}
            pairs.append(key | found)
    return pairs


def make_pair_table(pairs: Sequence[dict], metrics: Sequence[str], baseline: str) -> Table:
    """Make the table of `compare_runs`; `right alone` counts questions of the run, then of the baseline."""
    headers = ["noise", "objective", "seed", *(metric.replace("_", " ") for metric in metrics), "right alone", "p"]
    table = make_table(*headers, title=f"the same questions, minus {baseline}")
    for pair in pairs:
        test = pair["mcnemar"]
        last = [f"{test['only_second']} : {test['only_first']}", f"{test['p']:.2g}"] if test else ["-", "-"]
        differences = [format_interval(pair["differences"][metric], signed=True) for metric in metrics]
        noise = name_noise(pair["noise_kind"], pair["noise_ratio"])
        table.add_row(noise, pair["objective"], str(pair["seed"]), *differences, *last)
    return table
