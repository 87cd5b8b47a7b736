"""Figure 3 of the paper: a metric against the noise ratio, a line for each objective."""

from io import BytesIO

from matplotlib.figure import Figure

from cal_cli.reporting.statistics import mean_over_seeds


def noise_figure(grouped: dict[str, dict[float, dict[int, float]]], metric: str) -> bytes:
    """Draw a metric by noise ratio as a PNG; bars are 95 % intervals over seeds, where there are several.

    Args:
        grouped: the metric by objective, noise ratio and seed.
        metric: its name, for the axis.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for objective, by_ratio in grouped.items():
        ratios = sorted(by_ratio)
        means = [mean_over_seeds(list(by_ratio[ratio].values())) for ratio in ratios]
        half = [mean["value"] - mean["ci95"][0] if mean["ci95"] else 0 for mean in means]
        bars = half if any(half) else None
        axes.errorbar(ratios, [mean["value"] for mean in means], bars, marker="o", capsize=4, label=objective)
    seeds = max(len(by_seed) for by_ratio in grouped.values() for by_seed in by_ratio.values())
    axes.set(xlabel="share of samples with another's caption", ylabel=metric.replace("_", " "))
    axes.set_title("one seed: no interval" if seeds == 1 else f"means of {seeds} seeds, 95 % t intervals", fontsize=10)
    axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
    axes.grid(alpha=0.3)
    axes.legend()
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
