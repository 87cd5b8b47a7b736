"""95 % intervals of a benchmark's values, by a bootstrap over its pictures."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from cal_cli.evaluation.metrics import Metric, Parts

RESAMPLES = 1000


def table_of(parts: Sequence[Parts], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Each part summed over the questions of one picture, float64 [pictures], in the order of the pictures' names."""
    names = {group: place for place, group in enumerate(sorted(set(groups)))}
    table: dict[str, np.ndarray] = {}
    for one, group in zip(parts, groups, strict=True):
        for name, value in one.items():
            table.setdefault(name, np.zeros(len(names)))[names[group]] += value
    return table


def with_intervals(metric: Metric, parts: Sequence[Parts], groups: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The metric's values, each with the percentile bootstrap's 95 % interval (Efron 1979; scipy's).

    Pictures are drawn, with all their questions, as answers about one picture are not independent. Where all draws
    agree they say nothing: at either end of a share Wilson's interval over as many pictures stands in; other values
    then have none, nor has one picture.

    Args:
        metric: what is made of the parts.
        parts: of each question.
        groups: each question's picture.

    Returns:
        By name `{"value": float, "ci95": [low, high] or None}`.
    """
    table = table_of(parts, groups)
    values = metric.values({name: column.sum() for name, column in table.items()})
    pictures = len(next(iter(table.values())))
    found: dict[str, dict[str, Any]] = {name: {"value": float(value), "ci95": None} for name, value in values.items()}
    if pictures > 1:
        for (name, value), drawn in zip(values.items(), resampled(metric, [table])[0], strict=True):
            found[name]["ci95"] = interval_of(drawn)
            if found[name]["ci95"] is None and metric.top is not None and value in (0, metric.top):
                wilson = stats.binomtest(pictures if value else 0, pictures).proportion_ci(0.95, method="wilson")
                found[name]["ci95"] = [metric.top * float(wilson.low), metric.top * float(wilson.high)]
    return found


def interval_of(drawn: np.ndarray) -> list[float] | None:
    """The middle 95 % of draws; None where they all agree."""
    low, high = np.nanquantile(drawn, (0.025, 0.975))
    return [float(low), float(high)] if low < high else None


def paired_difference(metric: Metric, one: Sequence[Parts], other: Sequence[Parts], groups: Sequence[str]) -> dict:
    """Each value of `one` less that of `other`, answers to the same questions, with its 95 % interval.

    The same pictures are drawn for both, which takes out what makes a question hard for either. Where all draws agree,
    as where no answer differs, there is no interval.
    """
    tables = [table_of(parts, groups) for parts in (one, other)]
    sums = [metric.values({name: column.sum() for name, column in table.items()}) for table in tables]
    drawn = resampled(metric, tables)
    found = {}
    for place, name in enumerate(sums[0]):
        interval = interval_of(drawn[0][place] - drawn[1][place])
        found[name] = {"value": float(sums[0][name] - sums[1][name]), "ci95": interval}
    return found


def resampled(metric: Metric, tables: list[dict[str, np.ndarray]]) -> np.ndarray:
    """Every value of each table when pictures are drawn with replacement: float64 [tables, values, resamples]."""

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:
        pictures = drawn.astype(np.int64)
        sums = [{name: column[pictures].sum(axis=axis) for name, column in table.items()} for table in tables]
        return np.array([list(metric.values(one).values()) for one in sums])

    pictures = np.arange(len(next(iter(tables[0].values()))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of scipy's own interval, which is not used
        return stats.bootstrap(
            (pictures,), statistic, n_resamples=RESAMPLES, batch=50, method="percentile", rng=np.random.default_rng(0)
        ).bootstrap_distribution


def mcnemar(one: Sequence[float], other: Sequence[float]) -> dict[str, Any] | None:
    """McNemar's exact test of answers that are right or wrong; None where some are neither.

    Returns:
        `only_first`, `only_second` (questions that one alone has right) and the two-sided `p`.
    """
    if not set(one) | set(other) <= {0.0, 1.0}:
        return None
    first = sum(a > b for a, b in zip(one, other, strict=True))
    second = sum(a < b for a, b in zip(one, other, strict=True))
    p = float(stats.binomtest(first, first + second).pvalue) if first + second else 1.0
    return {"only_first": first, "only_second": second, "p": p}
