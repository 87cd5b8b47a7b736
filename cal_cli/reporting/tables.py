"""The tables of a report: means over seeds, and differences to a baseline on the same questions."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from rich.table import Table

from cal_cli.data.noise import SWAP
from cal_cli.reporting.collect import Result, name_noise
from cal_cli.reporting.pairs import compare, compare_over_runs
from cal_cli.runtime.console import make_table
from cal_cli.statistics.seeds import adjust_for_family, difference_over_seeds, format_interval, mean_over_seeds


def summarize_metric(
    table: pd.DataFrame, metric: str, baseline: str, together: Mapping[tuple, Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """Summarise a metric: for each noise and objective, the mean over seeds and the difference to the baseline.

    `table` is that of `tabulate_metric`; differences are paired by seed. `together` has the differences of
    `compare_seeds`. `p_holm` adjusts the p values of all differences of the metric.
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
                "over_seeds_and_questions": (together or {}).get((kind, ratio, objective), {}).get(metric),
            }
        )
    compared = [row["difference"] for row in rows if row["difference"]]
    for difference, p in zip(compared, adjust_for_family([one["p"] for one in compared]), strict=True):
        difference["p_holm"] = p
    return rows


def make_mean_tables(rows: Sequence[dict], baseline: str) -> dict[str, Table]:
    """Make a table for each metric, with a line between kinds and ratios of noise."""
    tables = {}
    for metric, of_metric in groupby(rows, key=lambda row: row["metric"]):
        headers = ("noise", "objective", "seeds", "mean", f"minus {baseline}", "p", "p, Holm", "detectable")
        table = make_table(*headers, title=metric.replace("_", " "))
        for noise, section in groupby(of_metric, key=lambda row: (row["noise_kind"], row["noise_ratio"])):
            for row in section:
                found, mean = row["difference"], format_interval(row["mean"])
                difference = format_interval(row["over_seeds_and_questions"] or found, signed=True)
                tests = ["-", "-", "-"]
                if found and found["n"] > 1:
                    detectable = found["detectable"]
                    tests = [f"{found['p']:.2g}", f"{found['p_holm']:.2g}", f"{detectable:.3f}" if detectable else "-"]
                table.add_row(name_noise(*noise), row["objective"], str(len(row["seeds"])), mean, difference, *tests)
            table.add_section()
        tables[metric] = table
    return tables


def compare_seeds(results: Sequence[Result], benchmark: str, baseline: str) -> dict[tuple, dict[str, Any]]:
    """Compare all seeds of an objective with the baseline's together, by kind and ratio of noise and by objective.

    See `compare_over_runs`; what it cannot compare is left out.
    """
    runs: dict[tuple, dict[int, Path]] = {}
    for result in results:
        runs.setdefault((*result.noise, result.objective), {})[result.seed] = result.run / "eval" / benchmark
    found: dict[tuple, dict[str, Any]] = {}
    for (*noise, objective), folders in runs.items():
        base = runs.get((*noise, baseline), {})
        shared = sorted(folders.keys() & base.keys())
        if objective != baseline and shared:
            together = compare_over_runs([base[seed] for seed in shared], [folders[seed] for seed in shared])
            found |= {} if together is None else {(*noise, objective): together}
    return found


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
        test = pair["test"]
        alone = "-" if test["only_first"] is None else f"{test['only_second']} : {test['only_first']}"
        last = [alone, f"{test['p']:.2g}"]
        differences = [format_interval(pair["differences"][metric], signed=True) for metric in metrics]
        noise = name_noise(pair["noise_kind"], pair["noise_ratio"])
        table.add_row(noise, pair["objective"], str(pair["seed"]), *differences, *last)
    return table
