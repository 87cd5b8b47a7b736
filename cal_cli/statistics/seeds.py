"""What several seeds say: means, paired differences, tests, and how large a difference they could have shown."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

LEVEL, POWER = 0.05, 0.8  # of the tests: probability of a false alarm, and of seeing a difference that is there
EXACT = 2**16  # sign flips that are all tried; of more, as many are drawn


def mean_over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, n and 95 % t interval of a metric over seeds; None for one seed, or if all values are equal."""
    value, n = float(np.mean(values)), len(values)
    if n < 2 or np.ptp(values) == 0:
        return {"value": value, "ci95": None, "n": n}
    half = float(stats.t.ppf(0.975, n - 1) * stats.sem(values))
    return {"value": value, "ci95": [value - half, value + half], "n": n}


def difference_over_seeds(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any] | None:
    """Return the mean difference to a baseline over the seeds that both have.

    Args:
        values: a metric by seed.
        baseline: the same metric of the baseline, by seed.

    Returns:
        As `mean_over_seeds`, and `spread`, the standard deviation (None for one seed), `p` of `run_sign_flip_test`,
        `wins` of `count_wins` and `detectable` of `find_detectable_difference`; None if no seed is shared.
    """
    shared = sorted(values.keys() & baseline.keys())
    if not shared:
        return None
    differences = [values[seed] - baseline[seed] for seed in shared]
    return mean_over_seeds(differences) | {
        "spread": float(np.std(differences, ddof=1)) if len(differences) > 1 else None,
        "p": run_sign_flip_test(differences),
        "wins": count_wins(differences),
        "detectable": find_detectable_difference(differences),
    }


def run_sign_flip_test(differences: Sequence[float]) -> float:
    """Compute the two-sided p of paired differences: the fraction of sign flips with a mean as far from 0.

    It is exact for up to 16 seeds, and assumes only that without an effect the two methods could be exchanged in each
    seed. With n seeds the smallest possible p is 2 / 2^n: 0.25 for 3, 0.0625 for 5, 0.002 for 10. The test is scipy's.
    """
    if len(differences) < 2:
        return 1.0
    return float(
        stats.permutation_test(
            (np.asarray(differences),), np.mean, permutation_type="samples", n_resamples=EXACT, vectorized=True, rng=0
        ).pvalue
    )


def count_wins(differences: Sequence[float]) -> dict[str, Any]:
    """Return in how many seeds a method is better, and the 95 % interval of that probability (Wilson's); ties halve."""
    won = sum(1.0 if one > 0 else 0.5 if one == 0 else 0.0 for one in differences)
    n = len(differences)
    edges = proportion_confint(won, n, LEVEL, method="wilson")
    return {"won": won, "n": n, "ci95": [float(edge) for edge in np.clip(edges, 0, 1)]}


def find_detectable_difference(differences: Sequence[float]) -> float | None:
    """Return the true difference that as many seeds, with this spread, would show with 80 % probability.

    The power is that of the paired two-sided t test at 5 %; None for fewer than three seeds or no spread.
    """
    n, spread = len(differences), float(np.std(differences, ddof=1)) if len(differences) > 1 else 0.0
    if n < 3 or not spread > 0:
        return None
    return spread * float(TTestPower().solve_power(nobs=n, alpha=LEVEL, power=POWER))


def find_needed_seeds(spread: float, difference: float) -> int:
    """Return the number of seeds, at least 3, that would show a true difference with 80 % probability; see above.

    Args:
        spread: standard deviation of the paired differences over seeds, above 0.
        difference: the true difference, not 0.
    """
    effect, test = abs(difference) / spread, TTestPower()
    if effect >= test.solve_power(nobs=3, alpha=LEVEL, power=POWER):  # above it, the power itself can be NaN
        return 3
    return math.ceil(test.solve_power(effect, alpha=LEVEL, power=POWER))


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
