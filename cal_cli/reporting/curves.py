"""Learning curves: the scores of runs while they trained (`evaluate_every`), and the steps to a given score."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich.table import Table

from cal_cli.reporting.collect import Result, sort_results
from cal_cli.reporting.figures import choose_style, make_panels, save
from cal_cli.runtime.console import make_table
from cal_cli.runtime.files import read_lines
from cal_cli.statistics.seeds import mean_over_seeds

PREFIX = "eval_"  # of scores in metrics.jsonl


def tabulate_curves(results: Sequence[Result], metric: str, baseline: str) -> pd.DataFrame:
    """Tabulate a metric while training: columns `condition`, `objective`, `seed`, `step` and `value`.

    The order is that of `tabulate_metric`. Runs without such scores have no rows.
    """
    rows = []
    for result in sort_results(results, baseline):
        path = result.run / "metrics.jsonl"
        for line in read_lines(path) if path.is_file() else []:
            if PREFIX + metric in line:
                rows.append([result.condition, result.objective, result.seed, line["step"], line[PREFIX + metric]])
    return pd.DataFrame(rows, columns=["condition", "objective", "seed", "step", "value"])


def summarize_curves(table: pd.DataFrame, metric: str, targets: Sequence[float]) -> list[dict[str, Any]]:
    """Summarise curves: for each condition and objective the mean by step, and the steps to each target.

    The steps to a target are those of the first evaluation that reaches it, as a mean over the seeds that do; `reached`
    counts them.
    """
    rows = []
    for (condition, objective), group in table.groupby(["condition", "objective"], sort=False):
        curve = [{"step": int(step), **mean_over_seeds(part["value"].tolist())} for step, part in group.groupby("step")]
        first = {}
        for target in targets:
            reaching = group[group["value"] >= target].groupby("seed")["step"].min()
            steps = float(reaching.mean()) if len(reaching) else None
            first[f"{target:g}"] = {"steps": steps, "reached": len(reaching), "seeds": int(group["seed"].nunique())}
        named = {"metric": metric, "condition": condition.name, "settings": dict(condition.settings)}
        rows.append({**named, "objective": objective, "curve": curve, "targets": first})
    return rows


def make_curve_table(rows: Sequence[dict], metric: str) -> Table:
    """Make the table of steps to each target."""
    targets = list(rows[0]["targets"])
    title = f"steps until {metric.replace('_', ' ')} reaches"
    table = make_table("condition", "objective", *targets, title=title)
    for row in rows:
        cells = []
        for found in row["targets"].values():
            some = "" if found["reached"] == found["seeds"] else f" ({found['reached']} of {found['seeds']} seeds)"
            cells.append("-" if found["steps"] is None else f"{found['steps']:.0f}{some}")
        table.add_row(row["condition"], row["objective"], *cells)
    return table


def draw_curves(rows: Mapping[str, Sequence[dict]]) -> bytes:
    """Draw the means over seeds by step as a PNG with a panel for each metric, from rows of `summarize_curves`."""
    figure, panels = make_panels(len(rows))
    for panel, (metric, curves) in zip(panels, rows.items(), strict=True):
        objectives = list(dict.fromkeys(row["objective"] for row in curves))
        conditions = list(dict.fromkeys(row["condition"] for row in curves))
        for row in curves:
            steps, means = zip(*((point["step"], point["value"]) for point in row["curve"]), strict=True)
            label = row["objective"] if len(conditions) == 1 else f"{row['objective']}, {row['condition']}"
            style = choose_style(objectives.index(row["objective"]), conditions.index(row["condition"]))
            panel.plot(steps, means, label=label, **style)
        panel.set(xlabel="optimizer steps", ylabel=metric.replace("_", " "))
    return save(figure)
