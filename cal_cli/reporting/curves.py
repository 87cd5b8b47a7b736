"""Learning curves: the scores of runs while they trained (`evaluate_every`), and the steps to a given score."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from rich.table import Table

from cal_cli.reporting.collect import Result, sort_results
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


def draw_curves(rows: Sequence[dict], metric: str) -> bytes:
    """Draw the mean over seeds by step as a PNG: a colour for each objective, a kind of line for each condition."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    colours = matplotlib.color_sequences["tab10"]
    objectives = list(dict.fromkeys(row["objective"] for row in rows))
    conditions = list(dict.fromkeys(row["condition"] for row in rows))
    for row in rows:
        style = ("-", "--", ":", "-.")[conditions.index(row["condition"]) % 4]
        steps, means = zip(*((point["step"], point["value"]) for point in row["curve"]), strict=True)
        label = row["objective"] if len(conditions) == 1 else f"{row['objective']}, {row['condition']}"
        axes.plot(steps, means, style, color=colours[objectives.index(row["objective"]) % 10], label=label)
    axes.set(xlabel="optimizer steps", ylabel=metric.replace("_", " "))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
