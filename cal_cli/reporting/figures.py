"""Figure 3 of the paper: a metric by noise ratio, or by another number that varies, with a line for each objective."""

from io import BytesIO

import matplotlib
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure

from cal_cli.data.noise import SWAP
from cal_cli.reporting.collect import Condition, is_number, write_setting
from cal_cli.statistics.seeds import mean_over_seeds

NOISE = "noise"


def draw_noise_figure(table: pd.DataFrame, metric: str) -> bytes:
    """Draw a metric, as `tabulate_metric` returns it, as a PNG; bars are 95 % intervals over several seeds.

    The horizontal axis is the ratio of noise if it varies, or else the first number that does; each combination of what
    else varies has lines of its own. Clean data begin the line of every kind of noise.
    """
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(marker=["o", "s"]) * cycler(color=matplotlib.color_sequences["tab10"]))
    axis = choose_axis(list(table["condition"]))
    kinds = list(dict.fromkeys(c.noise_kind for c in table["condition"] if c.noise_ratio)) or [SWAP]
    points: dict[tuple[str, str], dict[float, list[float]]] = {}
    for condition, objective, _, value in table.itertuples(index=False):
        for kind in [condition.noise_kind] if condition.noise_ratio else kinds:
            x, rest = split_condition(condition, axis, kind if kinds != [SWAP] else "")
            points.setdefault((objective, rest), {}).setdefault(x, []).append(value)
    for (objective, rest), by_x in points.items():
        means = {x: mean_over_seeds(by_x[x]) for x in sorted(by_x)}
        half = [mean["value"] - mean["ci95"][0] if mean["ci95"] else 0 for mean in means.values()]
        values = [mean["value"] for mean in means.values()]
        label = f"{objective}, {rest}" if rest else objective
        axes.errorbar(list(means), values, half if any(half) else None, capsize=4, label=label)
    seeds = max(len(values) for by_x in points.values() for values in by_x.values())
    share = "with another's caption" if kinds == [SWAP] else "whose text is wrong"
    axes.set(xlabel=f"share of samples {share}" if axis == NOISE else axis, ylabel=metric.replace("_", " "))
    axes.set_title("one seed: no interval" if seeds == 1 else f"means of {seeds} seeds, 95 % t intervals", fontsize=10)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()


def choose_axis(conditions: list[Condition]) -> str:
    """Choose what the horizontal axis shows: the ratio of noise, or the first setting that is a number and varies."""
    if len({condition.noise_ratio for condition in conditions}) > 1:
        return NOISE
    settings = dict(conditions[0].settings)
    return next((key for key in settings if all(is_number(dict(c.settings)[key]) for c in conditions)), NOISE)


def split_condition(condition: Condition, axis: str, kind: str) -> tuple[float, str]:
    """Return the place of a condition on the axis, and what else distinguishes it, with a kind of noise."""
    settings = dict(condition.settings)
    x = condition.noise_ratio if axis == NOISE else settings.pop(axis)
    rest = [f"{key}={write_setting(value)}" for key, value in settings.items()]
    if axis != NOISE and condition.noise_ratio:
        rest.append(f"noise {condition.noise_ratio:g}")
    return x, ", ".join([*rest, *([kind] if kind else [])])
