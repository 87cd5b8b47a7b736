"""A figure of the differences to a baseline, each with its interval."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from cal_cli.reporting.figures import choose_style, make_panels
from cal_cli.runtime.figure import encode_figure


def draw_differences(rows: Sequence[dict[str, Any]], baseline: str) -> bytes | None:
    """Draw a panel for each metric as a PNG, from rows of `summarize_metric`; None if no row has a difference.

    Each condition and objective has a line, the same one in all panels. The point is the mean over seeds, and the bar
    the 95 % interval: that over seeds and pictures if the row has it, or else that over seeds.
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
    figure, panels = make_panels(len(metrics), height=0.8 + 0.2 * len(labels), sharey=True)
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
                colour = choose_style(objectives.index(row["objective"]), 0)["color"]
                draw_difference(panel, row, lines[row["condition"], row["objective"]], colour)
    figure.suptitle(describe_intervals(rows), fontsize=10)
    return encode_figure(figure, dpi=130)


def describe_intervals(rows: Sequence[dict[str, Any]]) -> str:
    """Describe what the bars are: differences of one seed have none."""
    if all((row["over_seeds_and_questions"] or row["difference"])["ci95"] is None for row in rows):
        return "differences of one seed: no interval"
    return "differences paired by seed, with 95 % intervals; where the point is filled, the interval excludes 0"


def draw_difference(panel: Axes, row: dict[str, Any], line: int, colour: Any) -> None:
    """Draw the point and the interval of one row; the point is filled if the interval excludes 0."""
    found = row["over_seeds_and_questions"] or row["difference"]
    low, high = found["ci95"] or [found["value"]] * 2
    excludes_zero = found["ci95"] is not None and not low <= 0 <= high
    panel.plot([low, high], [line, line], color=colour)
    panel.plot(found["value"], line, "o", color=colour, markerfacecolor=colour if excludes_zero else "white")
