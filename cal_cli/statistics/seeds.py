"""What several seeds say: means, wins, and tests of a family of differences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cal_cli.statistics.runs import estimate_over_runs

LEVEL = 0.05  # of the tests: the probability of a false alarm


def mean_over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, n and 95 % t interval of a metric over seeds; None for one seed, or if all values are equal."""
    found = estimate_over_runs(np.array(values, dtype=float)[:, None])
    return {key: found[key] for key in ("value", "ci95", "n")}


def count_wins(differences: Sequence[float]) -> dict[str, Any]:
    """Return in how many seeds a method is better, and the 95 % interval of that probability (Wilson's); ties halve."""
    won = sum(1.0 if one > 0 else 0.5 if one == 0 else 0.0 for one in differences)
    n = len(differences)
    edges = proportion_confint(won, n, LEVEL, method="wilson")
    return {"won": won, "n": n, "ci95": [float(edge) for edge in np.clip(edges, 0, 1)]}


def adjust_for_family(values: Sequence[float]) -> list[float]:
    """Adjust the p values of a family of comparisons so that any false alarm in it has at most 5 % (Holm 1979)."""
    return multipletests(values, alpha=LEVEL, method="holm")[1].tolist() if values else []


def format_interval(value: Mapping | None, signed: bool = False, digits: int = 3) -> str:
    """Format `{"value", "ci95"}` as text, such as `0.684 [0.650, 0.720]`; `-` for None."""
    if value is None or value["value"] is None:
        return "-"
    number = f"{{:{'+' if signed else ''}.{digits}f}}"
    text = number.format(value["value"])
    if value["ci95"]:
        text += f" [{number.format(value['ci95'][0])}, {number.format(value['ci95'][1])}]"
    return text
