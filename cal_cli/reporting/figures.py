"""The figures of a report: metrics by noise ratio (Figure 3 of the paper), learning curves, and differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from cal_cli.data.noise_kinds import SWAP
from cal_cli.reporting.results import Condition, group_runs, is_number, write_setting
from cal_cli.runtime.console import make_table
from cal_cli.runtime.files import encode_figure, read_lines
from cal_cli.statistics.seeds import mean_over_seeds

NOISE = "noise"
LINES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)))


def draw_noise_figure(
    rows: Sequence[Mapping[str, Any]], baseline: str = "ce", before_training: Mapping[str, Any] | None = None
) -> bytes:
    """Draw a panel for each metric as a PNG, from rows of a report; bars are the 95 % intervals of the means.

    A dotted line is the checkpoint before training, if it has been evaluated.

    The horizontal axis is the ratio of noise, or a setting that has more values. Each objective has a colour, and each
    combination of what else varies has a style of line. Clean data begin the line of every kind of noise.
    """
    conditions = {row["condition"]: get_condition(row) for row in rows}
    axis = choose_axis(list(conditions.values()))
    kinds = list(dict.fromkeys(c.noise_kind for c in conditions.values() if c.noise_ratio)) or [SWAP]
    noise = "swapped texts" if kinds == [SWAP] else "wrong texts"
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    figure, panels = make_panels(len(metrics))
    for panel, metric in zip(panels, metrics, strict=True):
        draw_lines(panel, [row for row in rows if row["metric"] == metric], axis, kinds, baseline)
        start = (before_training or {}).get(metric)
        if start:
            panel.axhline(start["value"], color="black", linestyle=":", label="before training")
        panel.set(ylabel=metric.replace("_", " "), ylim=(0, choose_top(rows, metric, start)))
        panel.set_xlabel(f"fraction of {noise}" if axis == NOISE else axis)
    return save(figure, describe_seeds({len(row["seeds"]) for row in rows}))


def choose_top(rows: Sequence[Mapping[str, Any]], metric: str, start: Mapping[str, Any] | None = None) -> float:
    """Choose the top of a panel: above the start, all means, and their intervals unless these are far wider."""
    means = [row["mean"] for row in rows if row["metric"] == metric]
    highest = max(mean["value"] for mean in (*means, *([start] if start else [])))
    edges = [mean["ci95"][1] for mean in means if mean["ci95"]]
    return min(1.08 * max([highest, *edges]), 1.6 * highest) or 1.0


def get_condition(row: Mapping[str, Any]) -> Condition:
    """Return the condition of a row of a report."""
    return Condition(tuple(row["settings"].items()), row["noise_kind"], row["noise_ratio"])


def draw_lines(panel: Axes, rows: Sequence[Mapping[str, Any]], axis: str, kinds: Sequence[str], baseline: str) -> None:
    """Draw the lines of one metric."""
    points: dict[tuple[str, str], dict[float, Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["objective"] != baseline, row["objective"])):
        condition = get_condition(row)
        for kind in [condition.noise_kind] if condition.noise_ratio else kinds:
            x, rest = split_condition(condition, axis, kind if kinds != [SWAP] else "")
            points.setdefault((row["objective"], rest), {})[x] = row["mean"]
    objectives = list(dict.fromkeys(objective for objective, _ in points))
    rests = list(dict.fromkeys(rest for _, rest in points))
    shown = sorted({x for means in points.values() for x in means})
    log = 0 < 10 * shown[0] <= shown[-1]  # such as learning rates
    for line, ((objective, rest), means) in enumerate(points.items()):
        places = sorted(means)
        # so that bars can be seen
        aside = 0 if log else 0.012 * (line - (len(points) - 1) / 2) * (shown[-1] - shown[0] or 4)
        values = [means[x]["value"] for x in places]
        edges = [means[x]["ci95"] or [means[x]["value"]] * 2 for x in places]
        bars = [[value - low, high - value] for value, (low, high) in zip(values, edges, strict=True)]
        style = choose_style(objectives.index(objective), rests.index(rest))
        label = f"{objective}, {rest}" if rest else objective
        drawn = list(zip(*bars, strict=True)) if any(map(any, bars)) else None
        panel.errorbar([x + aside for x in places], values, drawn, capsize=2, marker=".", label=label, **style)
    if len(shown) == 1:
        panel.set_xticks(shown)
    if log:
        panel.set_xscale("log")
        panel.set_xticks(shown, [f"{x:g}" for x in shown])
        panel.minorticks_off()


def describe_seeds(counts: set[int]) -> str:
    """Describe the intervals of points that have these numbers of seeds."""
    if counts == {1}:
        return "one seed, with 95 % intervals over images"
    several = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"means of {several} seeds, with 95 % intervals"


def choose_style(objective: int, rest: int) -> dict[str, Any]:
    """Choose the colour of an objective and the kind of line of a condition, from their positions."""
    colours = matplotlib.color_sequences["tab20"]
    return {"color": colours[2 * objective % 20 + objective // 10 % 2], "linestyle": LINES[rest % len(LINES)]}


def make_panels(count: int, height: float = 2.9, shared: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure with at most three panels in a row, each `height` inches high; `shared` scales are the same."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5), height * rows + 0.6), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharex=shared, sharey=shared).flat)
    for panel in grid[count:]:
        panel.remove()
    for panel in grid[:count]:
        panel.grid(alpha=0.3)
    return figure, grid[:count]


def save(figure: Figure, title: str | None = None) -> bytes:
    """Return a figure as a PNG, with the legend of its first panel below all."""
    if title:
        figure.suptitle(title, fontsize=10)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    column = 0.6 + 0.07 * max(map(len, labels))  # inches: the line, and the characters of the longest label
    ncols = min(len(labels), 5, max(int(figure.get_figwidth() / column), 1))
    figure.legend(handles, labels, loc="outside lower center", ncols=ncols, fontsize=8)
    return encode_figure(figure, dpi=130)


def choose_axis(conditions: list[Condition]) -> str:
    """Choose what the horizontal axis shows: what has most values, the ratio of noise or a setting that is a number."""
    values = {NOISE: {condition.noise_ratio for condition in conditions}}
    for key, _ in conditions[0].settings:
        values[key] = {dict(condition.settings)[key] for condition in conditions}
        if not all(is_number(value) for value in values[key]):
            del values[key]
    return max(values, key=lambda key: len(values[key]))  # the first of several: noise


def split_condition(condition: Condition, axis: str, kind: str) -> tuple[float, str]:
    """Return the place of a condition on the axis, and what else distinguishes it, with a kind of noise."""
    settings = dict(condition.settings)
    x = condition.noise_ratio if axis == NOISE else settings.pop(axis)
    rest = [f"{key}={write_setting(value)}" for key, value in settings.items() if value is not None]
    if axis != NOISE and condition.noise_ratio:
        rest.append(f"noise {condition.noise_ratio:g}")
    return x, ", ".join([*rest, *([kind] if kind else [])])


PREFIX = "eval_"  # of scores in metrics.jsonl


def tabulate_curves(runs: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Tabulate a metric while training: columns `condition`, `objective`, `seed`, `step` and `value`.

    `runs` has a row for each run. Runs without such scores have no rows.
    """
    rows = []
    for condition, objective, group in group_runs(runs, baseline):
        for run, seed in zip(group["run"], group["seed"], strict=True):
            lines = read_lines(run / "metrics.jsonl")
            scores = [(line["step"], line[PREFIX + metric]) for line in lines if PREFIX + metric in line]
            rows += [[condition, objective, seed, *score] for score in scores]
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
        for target in row["targets"].values():
            some = "" if target["reached"] == target["seeds"] else f" ({target['reached']} of {target['seeds']} seeds)"
            cells.append("-" if target["steps"] is None else f"{target['steps']:.0f}{some}")
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


def draw_differences(rows: Sequence[dict[str, Any]], baseline: str) -> bytes | None:
    """Draw a panel for each metric as a PNG, from rows of `summarize_metric`; None if no row has a difference.

    Each condition and objective has a line, the same one in all panels. The point is the mean over seeds, and the bar
    its 95 % interval.
    """
    rows = [row for row in rows if row["difference"]]
    if not rows:
        return None
    objectives = [baseline, *dict.fromkeys(row["objective"] for row in rows)]
    metrics = list(dict.fromkeys(row["metric"] for row in rows))
    labels: list[str] = []
    lines: dict[tuple[str, str], int] = {}
    for condition in dict.fromkeys(row["condition"] for row in rows):
        labels.append(condition if rows[0]["settings"] else f"noise {condition}")
        for objective in dict.fromkeys(row["objective"] for row in rows if row["condition"] == condition):
            lines[condition, objective] = len(labels)
            labels.append(objective)
    figure, panels = make_panels(len(metrics), height=0.8 + 0.2 * len(labels), shared=True)
    panels[0].set_yticks(range(len(labels)), labels)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    for panel, metric in zip(panels, metrics, strict=True):
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel(f"{metric.replace('_', ' ')},\nminus {baseline}")
        panel.locator_params(axis="x", nbins=5)
        panel.tick_params(axis="x", labelsize=8)
        for place, label in enumerate(panel.get_yticklabels()):
            label.set(fontsize=8, fontweight="normal" if place in lines.values() else "bold")
        for row in rows:
            if row["metric"] == metric:
                value, line = row["difference"]["value"], lines[row["condition"], row["objective"]]
                low, high = row["difference"]["ci95"] or [value] * 2
                excludes_zero = row["difference"]["ci95"] is not None and not low <= 0 <= high
                colour = choose_style(objectives.index(row["objective"]), 0)["color"]
                panel.plot([low, high], [line, line], color=colour)
                panel.plot(value, line, "o", color=colour, markerfacecolor=colour if excludes_zero else "white")
    figure.suptitle(describe_intervals(rows), fontsize=10)
    return encode_figure(figure, dpi=130)


def describe_intervals(rows: Sequence[dict[str, Any]]) -> str:
    """Describe what the bars are: differences of one seed have none."""
    if all(row["difference"]["ci95"] is None for row in rows):
        return "differences of one seed: no interval"
    return "differences paired by seed, with 95 % intervals; where the point is filled, the interval excludes 0"
