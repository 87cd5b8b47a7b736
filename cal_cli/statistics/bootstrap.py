"""95 % intervals by the bootstrap, and a permutation test, over groups of answers that belong together.

A benchmark's values are functions of sums over its questions: each question has *parts*, numbers that can be added up.
One bootstrap, which draws the groups (images) with all their questions, then serves every metric.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

RESAMPLES = 1000
Parts = Mapping[str, float]
Values = Callable[[Mapping[str, np.ndarray]], Mapping[str, Any]]  # from sums of parts to values by name


def sum_by_group(parts: Sequence[Parts], groups: Sequence[str]) -> dict[str, np.ndarray]:
    """Sum each part over the questions of one group: float64 [groups], in the order of the groups' names."""
    places = {group: place for place, group in enumerate(sorted(set(groups)))}
    table: dict[str, np.ndarray] = {}
    for summands, group in zip(parts, groups, strict=True):
        for name, value in summands.items():
            table.setdefault(name, np.zeros(len(places)))[places[group]] += value
    return table


def estimate_values(
    values: Values, parts: Sequence[Parts], groups: Sequence[str], top: float | None = None
) -> dict[str, dict[str, Any]]:
    """Compute a metric's values, each with the percentile bootstrap's 95 % interval (Efron 1979; scipy's).

    Groups are drawn with all their questions, because answers about one image are not independent. If all draws
    agree, they carry no information: at either end of a share, Wilson's interval over the groups that it is about
    replaces them; other values then have no interval. A single group has none either.

    Args:
        values: computes the values from the sums of the parts.
        parts: the parts of each question.
        groups: the group of each question.
        top: the largest possible value, if all values are means of scores from 0; else None.

    Returns by name `{"value": float, "ci95": [low, high] or None}`.
    """
    table = sum_by_group(parts, groups)
    whole = values({name: column.sum() for name, column in table.items()})
    count = len(next(iter(table.values())))
    estimates: dict[str, Any] = {name: {"value": float(value), "ci95": None} for name, value in whole.items()}

    def statistic(drawn: np.ndarray, axis: int) -> np.ndarray:  # float64 [values, resamples]
        chosen = drawn.astype(np.int64)
        return np.array(list(values({name: column[chosen].sum(axis=axis) for name, column in table.items()}).values()))

    if count == 1:
        return estimates
    options: Any = {"n_resamples": RESAMPLES, "batch": 50, "method": "percentile", "rng": np.random.default_rng(0)}
    with warnings.catch_warnings():  # about scipy's own interval, which is not used
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        resampled = stats.bootstrap((np.arange(count),), statistic, **options).bootstrap_distribution
    for (name, value), drawn in zip(whole.items(), resampled, strict=True):
        low, high = np.nanquantile(drawn, (0.025, 0.975))
        estimates[name]["ci95"] = [float(low), float(high)] if low < high else None
        if low < high or top is None or value not in (0, top):
            continue
        if own := count_groups(values, table, name):
            wilson = stats.binomtest(own if value else 0, own).proportion_ci(0.95, method="wilson")
            estimates[name]["ci95"] = [top * float(wilson.low), top * float(wilson.high)]
    return estimates


def count_groups(values: Values, table: Mapping[str, np.ndarray], name: str) -> int:
    """Count the groups that a value is about, such as the images of one task: those with a part that can change it."""
    sums = {part: np.array(2.0 + number) for number, part in enumerate(table)}  # no ratio is 0, whatever it is of
    parts = [part for part in table if values(sums | {part: np.array(1.0)})[name] != values(sums)[name]]
    return int(np.any([table[part] != 0 for part in parts], axis=0).sum())


def median_ratio(values: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Compute the median over rounds of `values / base`, with a 95 % bootstrap interval (None for one round)."""
    ratios = np.divide(values, base)
    interval = None
    if len(ratios) > 1:
        limits = stats.bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        interval = [float(limits.low), float(limits.high)]
    return {"median": float(np.median(ratios)), "ci95": interval}


def run_group_test(
    first_scores: Sequence[float], second_scores: Sequence[float], groups: Sequence[str]
) -> dict[str, Any]:
    """Test whether two sets of scores of the same questions differ, by sign flips of whole groups.

    Without a difference the two could be exchanged for each image, with all its questions. For answers that are right
    or wrong, one about each image, this is McNemar's test by the difference of counts. Up to 16 groups that differ it
    is exact; of more, 9,999 flips are drawn. The test is scipy's.

    Returns the two-sided `p`; `only_first` and `only_second`, the numbers of questions that only one has right, None if
    answers are not simply right or wrong.
    """
    totals: dict[str, float] = {}
    for a, b, group in zip(first_scores, second_scores, groups, strict=True):
        totals[group] = totals.get(group, 0.0) + a - b
    differing = np.array([total for total in totals.values() if total])
    flips = 2 ** len(differing) if len(differing) <= 16 else 9_999
    p = 1.0
    if len(differing) > 1:
        p = float(
            stats.permutation_test(
                (differing,), np.sum, permutation_type="samples", n_resamples=flips, batch=500, vectorized=True, rng=0
            ).pvalue
        )
    binary = set(first_scores) | set(second_scores) <= {0.0, 1.0}
    first = sum(a > b for a, b in zip(first_scores, second_scores, strict=True)) if binary else None
    second = sum(a < b for a, b in zip(first_scores, second_scores, strict=True)) if binary else None
    return {"only_first": first, "only_second": second, "p": p}


def compute_auc(evidence: np.ndarray, positive: np.ndarray) -> float:
    """Compute the area under the ROC curve of a detector.

    This is the probability that of a positive and a negative token the positive one has more evidence, with ties
    counted half: the Mann-Whitney U statistic divided by the number of pairs.

    Args:
        evidence: float [tokens].
        positive: bool [tokens], with both values present.
    """
    yes, no = evidence[positive], evidence[~positive]
    return float(stats.mannwhitneyu(yes, no).statistic / (len(yes) * len(no)))


def estimate_auc_interval(
    evidence: np.ndarray, positive: np.ndarray, sample: np.ndarray, resamples: int = 500, seed: int = 0
) -> list[float] | None:
    """Estimate the 95 % percentile bootstrap interval of `compute_auc`, by drawing samples with all their tokens.

    Args:
        evidence, positive: as in `compute_auc`; samples with positive tokens and those without are drawn apart.
        sample: int [tokens], the sample that each token belongs to.
        resamples, seed: number of draws, and their seed.

    Returns the interval, or None if there are too few samples.
    """
    members = [np.flatnonzero(sample == number) for number in np.unique(sample)]
    mixed = np.array([positive[tokens].any() for tokens in members])

    # drawn separately, so that the numbers of samples with and without positive tokens are the same in every resample
    groups = [group for group in (np.flatnonzero(~mixed), np.flatnonzero(mixed)) if len(group)]
    if any(len(group) < 2 for group in groups):
        return None

    def statistic(*drawn: np.ndarray) -> float:
        tokens = np.concatenate([members[int(number)] for number in np.concatenate(drawn)])
        chosen = positive[tokens]
        return compute_auc(evidence[tokens], chosen) if chosen.any() and not chosen.all() else np.nan

    drawn = stats.bootstrap(groups, statistic, n_resamples=resamples, vectorized=False, method="percentile", rng=seed)
    interval = [float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)]
    return None if np.isnan(interval).any() else interval
