"""Means over seeds with Student's 95 % intervals, and none where there is one seed."""

import numpy as np
from scipy import stats


def mean_over_seeds(values: list[float]) -> dict:
    """Mean, n and 95 % t interval of a metric over seeds; the interval is None for a single seed."""
    value, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"value": value, "ci95": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def paired_difference(values: dict[int, float], baseline: dict[int, float]) -> dict | None:
    """Mean over shared seeds of the difference to a baseline, with its interval.

    Args:
        values: a metric by seed.
        baseline: the same metric of the baseline, by seed.

    Returns:
        As `mean_over_seeds`; None where no seed is shared.
    """
    shared = sorted(values.keys() & baseline.keys())
    return mean_over_seeds([values[seed] - baseline[seed] for seed in shared]) if shared else None


def cell(value: dict | None, signed: bool = False) -> str:
    """A mean and its interval as text."""
    if value is None:
        return "-"
    number = f"{{:{'+' if signed else ''}.3f}}"
    text = number.format(value["value"])
    if value["ci95"]:
        text += f" [{number.format(value['ci95'][0])}, {number.format(value['ci95'][1])}]"
    return text
