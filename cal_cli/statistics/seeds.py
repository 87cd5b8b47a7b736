"""What several runs that answer the same questions say: intervals over runs and images together, tests, and wins."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cal_cli.statistics.bootstrap import Values

LEVEL = 0.05  # of the tests: the probability of a false alarm
NODES = np.linspace(-8, 0, 401)[:-1] + 0.01  # normal quantiles, to integrate over the lower half of a distribution


def score_groups(values: Values, table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Write each value of a benchmark as a mean over groups of questions, such as those about one image.

    The score of a group is the value plus the influence of the group, by the jackknife (Tukey 1958): n - 1 times what
    the value loses without the group. The scores of a plain mean are the groups' own; those of a ratio, such as F1, are
    its linearisation.

    Args:
        values: computes the values from the sums of the parts.
        table: the sums of each group, float64 [groups], as from `sum_by_group`.

    Returns by name float64 [groups], whose mean is the value; nan where the value is not defined without a group.
    """
    n = len(next(iter(table.values())))
    whole = values({name: column.sum() for name, column in table.items()})
    rest = values({name: (column.sum() - column) * n / max(n - 1, 1) for name, column in table.items()})
    return {
        name: float(value) + (n - 1) * (np.mean(rest[name]) - np.broadcast_to(rest[name], n))
        for name, value in whole.items()
    }


def estimate_over_runs(scores: np.ndarray, starts: Sequence[Any] | None = None) -> dict[str, Any]:
    """Estimate the mean of scores that vary with the run, with the image, and with both.

    In the model, score[run, image] = mean + a[run] + b[image] + e[run, image], with random effects (crossed, as
    readers and cases are: Hillis 2007, Statistics in Medicine 26:596). The error of the mean is the sum of a part due
    to runs, which follows Student's distribution with few degrees of freedom, and one due to images, which is nearly
    normal. The interval is that of the sum (Behrens and Fisher). If runs started from several checkpoints, these are
    random too, with the runs nested in them: where their means differ by more than runs from one checkpoint do, the
    part due to runs has the variance of both (by the analysis of variance), and Satterthwaite's degrees of freedom.

    Args:
        scores: float64 [runs, images], such as differences of two objectives, paired by seed and image.
        starts: the checkpoint that each run started from; None if they share one.

    Returns:
        `value`; `ci95`, its 95 % interval, and `p`, that of the two-sided test against 0, both None if neither runs nor
        images vary, or a score is nan; `error`, its standard error; `n`, the number of runs. With a single run, the
        interval is over images alone.

    Example:
        >>> found = estimate_over_runs(np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
        >>> [round(edge, 2) for edge in found["ci95"]]
        [0.02, 1.09]
    """
    runs, images = scores.shape
    value = float(scores.mean())
    estimate: dict[str, Any] = {"value": value, "ci95": None, "p": None, "error": None, "n": runs}
    if not np.isfinite(scores).all() or runs * images == 1:
        return estimate
    by_run, by_image = scores.mean(axis=1), scores.mean(axis=0)
    of_image = by_image.var(ddof=1) / images if images > 1 else 0.0
    if runs == 1:  # all error is due to the images, and follows Student's distribution
        of_run, of_image, freedom = of_image, 0.0, images - 1.0
    else:
        rest = scores - by_run[:, None] - by_image + value
        if images > 1:
            of_image = max(of_image - (rest**2).sum() / ((runs - 1) * (images - 1) * runs * images), 0.0)
        of_run, freedom = estimate_variance(by_run, starts)
    if of_run + of_image < 1e-18:
        return estimate
    error = float(np.sqrt(of_run + of_image))
    spread, mass = stats.t.ppf(stats.norm.cdf(NODES), freedom) * np.sqrt(of_run), stats.norm.pdf(NODES) * 0.02

    def find_tail(half: float) -> float:  # the probability of a larger error, in either direction
        if not of_image:
            return float(2 * stats.t.sf(half / error, freedom))
        tails = [stats.norm.sf((half + sign * spread) / np.sqrt(of_image)) for sign in (-1, 1)]
        return float(2 * (mass * (tails[0] + tails[1])).sum())

    half = optimize.brentq(lambda half: find_tail(half) - 0.05, 0.0, 20 * error)
    return estimate | {"ci95": [value - half, value + half], "p": min(find_tail(abs(value)), 1.0), "error": error}


def estimate_variance(means: np.ndarray, starts: Sequence[Any] | None) -> tuple[float, float]:
    """Estimate the variance of the mean of runs, which are nested in checkpoints, and its degrees of freedom.

    Args:
        means: float64 [runs], at least two.
        starts: as in `estimate_over_runs`.
    """
    n = len(means)
    names, member = np.unique([str(start) for start in starts or [""] * n], return_inverse=True)
    if 1 < len(names) < n:
        counts = np.bincount(member)
        centres = np.bincount(member, means) / counts
        between = (counts * (centres - means.mean()) ** 2).sum() / (len(names) - 1)
        within = ((means - centres[member]) ** 2).sum() / (n - len(names))
        share = (counts**2).sum() / n**2 * (len(names) - 1) / (n - (counts**2).sum() / n)
        if between > within:
            parts = share * between, (1 / n - share) * within
            freedom = sum(parts) ** 2 / (parts[0] ** 2 / (len(names) - 1) + parts[1] ** 2 / (n - len(names)))
            # unequal numbers of runs make one part negative, and this approximation fewer or more than there are
            return sum(parts), float(np.clip(freedom, len(names) - 1, n - 1))
    return float(means.var(ddof=1) / n), n - 1.0


def mean_over_seeds(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, n and 95 % t interval of a metric over seeds; None for one seed, or if all values are equal."""
    estimate = estimate_over_runs(np.array(values, dtype=float)[:, None])
    return {key: estimate[key] for key in ("value", "ci95", "n")}


def count_wins(differences: Sequence[float]) -> dict[str, Any]:
    """Return in how many seeds a method is better, and the 95 % interval of that probability (Wilson's); ties halve."""
    won = sum(1.0 if difference > 0 else 0.5 if difference == 0 else 0.0 for difference in differences)
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
