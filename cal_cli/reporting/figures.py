"""Figure 3 of the paper: a metric by noise ratio, with a line for each objective and kind of noise."""

from io import BytesIO
from itertools import product

import matplotlib
import pandas as pd
from cycler import cycler
from matplotlib.figure import Figure

from cal_cli.data.noise import SWAP
from cal_cli.statistics.seeds import mean_over_seeds


def draw_noise_figure(table: pd.DataFrame, metric: str) -> bytes:
    """Draw a metric, as `tabulate_metric` returns it, as a PNG; bars are 95 % intervals over several seeds."""
    figure = Figure(figsize=(7.5, 4), layout="constrained")
    axes = figure.subplots()
    axes.set_prop_cycle(cycler(marker=["o", "s"]) * cycler(color=matplotlib.color_sequences["tab10"]))
    kinds = list(dict.fromkeys(table.loc[table["ratio"] > 0, "kind"])) or [SWAP]
    objectives = list(dict.fromkeys(table["objective"]))
    for kind, objective in product(kinds, objectives):
        # clean data begin the line of every kind
        group = table[(table["objective"] == objective) & ((table["kind"] == kind) | (table["ratio"] == 0))]
        means = {ratio: mean_over_seeds(part["value"].tolist()) for ratio, part in group.groupby("ratio")}
        half = [mean["value"] - mean["ci95"][0] if mean["ci95"] else 0 for mean in means.values()]
        values = [mean["value"] for mean in means.values()]
        label = objective if kinds == [SWAP] else f"{objective}, {kind}"
        axes.errorbar(list(means), values, half if any(half) else None, capsize=4, label=label)
    seeds = table.groupby(["objective", "kind", "ratio"]).size().max()
    share = "with another's caption" if kinds == [SWAP] else "whose text is wrong"
    axes.set(xlabel=f"share of samples {share}", ylabel=metric.replace("_", " "))
    axes.set_title("one seed: no interval" if seeds == 1 else f"means of {seeds} seeds, 95 % t intervals", fontsize=10)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
