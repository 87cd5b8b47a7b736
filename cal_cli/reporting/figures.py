"""Figure 3 of the paper: a metric by noise ratio, or by another number that varies, with a line for each objective."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cal_cli.data.noise_kinds import SWAP
from cal_cli.reporting.collect import Condition, is_number, write_setting
from cal_cli.runtime.figure import encode_figure
from cal_cli.statistics.seeds import mean_over_seeds

NOISE = "noise"
LINES = ("-", "--", ":", "-.", (0, (1, 3)), (0, (6, 1, 1, 1, 1, 1)))


def draw_noise_figure(tables: Mapping[str, pd.DataFrame]) -> bytes:
    """Draw a panel for each metric as a PNG, from tables of `tabulate_metric`; bars are 95 % intervals over seeds.

    The horizontal axis is the ratio of noise, or a setting that has more values. Each objective has a colour, and each
    combination of what else varies has a style of line. Clean data begin the line of every kind of noise.
    """
    figure, panels = make_panels(len(tables))
    first = next(iter(tables.values()))
    axis = choose_axis(list(first["condition"]))
    kinds = list(dict.fromkeys(c.noise_kind for c in first["condition"] if c.noise_ratio)) or [SWAP]
    share = "with another's caption" if kinds == [SWAP] else "whose text is wrong"
    seeds: set[int] = set()
    for panel, (metric, table) in zip(panels, tables.items(), strict=True):
        seeds |= draw_lines(panel, table, axis, kinds)
        panel.set(ylabel=metric.replace("_", " "), ylim=(0, 1.08 * panel.get_ylim()[1]))
        panel.set_xlabel(f"share of samples {share}" if axis == NOISE else axis)
    return save(figure, describe_seeds(seeds))


def draw_lines(panel: Axes, table: pd.DataFrame, axis: str, kinds: Sequence[str]) -> set[int]:
    """Draw the lines of one metric; return the numbers of seeds of its points."""
    points: dict[tuple[str, str], dict[float, list[float]]] = {}
    for condition, objective, _, value in table.itertuples(index=False):
        for kind in [condition.noise_kind] if condition.noise_ratio else kinds:
            x, rest = split_condition(condition, axis, kind if kinds != [SWAP] else "")
            points.setdefault((objective, rest), {}).setdefault(x, []).append(value)
    objectives = list(dict.fromkeys(objective for objective, _ in points))
    rests = list(dict.fromkeys(rest for _, rest in points))
    for (objective, rest), by_x in points.items():
        means = {x: mean_over_seeds(by_x[x]) for x in sorted(by_x)}
        half = [mean["value"] - mean["ci95"][0] if mean["ci95"] else 0 for mean in means.values()]
        values = [mean["value"] for mean in means.values()]
        style = choose_style(objectives.index(objective), rests.index(rest))
        label = f"{objective}, {rest}" if rest else objective
        panel.errorbar(list(means), values, half if any(half) else None, capsize=3, marker="o", label=label, **style)
    places = sorted({x for by_x in points.values() for x in by_x})
    if 0 < 10 * places[0] <= places[-1]:  # such as learning rates
        panel.set_xscale("log")
        panel.set_xticks(places, [f"{x:g}" for x in places])
        panel.minorticks_off()
    return {len(values) for by_x in points.values() for values in by_x.values()}


def describe_seeds(counts: set[int]) -> str:
    """Describe the intervals of points that have these numbers of seeds."""
    if counts == {1}:
        return "one seed: no interval"
    several = str(max(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    return f"means of {several} seeds, 95 % t intervals"


def choose_style(objective: int, rest: int) -> dict[str, Any]:
    """Choose the colour of an objective and the kind of line of a condition, from their positions."""
    colours = matplotlib.color_sequences["tab20"]
    return {"color": colours[2 * objective % 20 + objective // 10 % 2], "linestyle": LINES[rest % len(LINES)]}


def make_panels(count: int, height: float = 2.9, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    """Make a figure with at most three panels in a row, each as high as `height` in inches."""
    columns = min(count, 3)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(3.4 * columns, 5), height * rows + 0.6), layout="constrained")
    grid = list(figure.subplots(rows, columns, squeeze=False, sharey=sharey).flat)
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
    rest = [f"{key}={write_setting(value)}" for key, value in settings.items()]
    if axis != NOISE and condition.noise_ratio:
        rest.append(f"noise {condition.noise_ratio:g}")
    return x, ", ".join([*rest, *([kind] if kind else [])])
