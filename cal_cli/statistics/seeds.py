"""Means over seeds with Student's 95 % intervals; a single seed has no interval."""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats


def mean_over_seeds(values: Sequence[float]) -> dict:
    """Return mean, n and 95 % t interval of a metric over seeds; the interval is None for a single seed."""
    value, n = float(np.mean(values)), len(values)
    if n < 2:
        return {"value": value, "ci95": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def difference_over_seeds(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict | None:
    """Return the mean difference to a baseline over the seeds that both have, with its interval.

    Args:
        values: a metric by seed.
        baseline: the same metric of the baseline, by seed.

    Returns:
        As `mean_over_seeds`; None if no seed is shared.
    """
    shared = sorted(values.keys() & baseline.keys())
    return mean_over_seeds([values[seed] - baseline[seed] for seed in shared]) if shared else None


def format_interval(value: Mapping | None, signed: bool = False, digits: int = 3) -> str:
    """Format `{"value", "ci95"}` as text, such as `0.684 [0.650, 0.720]`; `-` for None."""
    if value is None:
        return "-"
    number = f"{{:{'+' if signed else ''}.{digits}f}}"
    text = number.format(value["value"])
    if value["ci95"]:
        text += f" [{number.format(value['ci95'][0])}, {number.format(value['ci95'][1])}]"
    return text
