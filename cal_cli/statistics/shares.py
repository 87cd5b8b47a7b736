"""The fraction of wrong items, with 95 % intervals: from ratios of likelihoods, and from judgements of a sample."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import optimize, special, stats
from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True)
class Strata:
    """Groups of items of which some, drawn at random within each group, were judged.

    Attributes:
        size: int [strata], the number of items.
        judged: int [strata], of which so many were judged.
        wrong: int [strata], of which so many are wrong.
        rate: float [strata], the fraction to assume where none was judged.
    """

    size: np.ndarray
    judged: np.ndarray
    wrong: np.ndarray
    rate: np.ndarray

    def bound_totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimate the number of wrong items of each stratum, with its 95 % limits: three times float64 [strata].

        The limits are exact (Clopper and Pearson), with the correction for a finite population, and within what the
        judgements leave open.
        A stratum of which all items were judged is known; of one without a judgement, nothing is.
        """
        judged = np.maximum(self.judged, 1)
        share = np.where(self.judged > 0, self.wrong / judged, self.rate)
        low, high = proportion_confint(self.wrong, judged, method="beta")
        low, high = np.where(self.judged > 0, [low, high], [[0.0], [1.0]])
        left = self.size - self.judged
        shrink = np.sqrt(np.where(self.judged > 0, left / np.maximum(self.size - 1, 1), 1.0))
        least, most = self.wrong, self.wrong + left
        return (
            self.size * share,
            np.maximum(self.size * (share - (share - low) * shrink), least),
            np.minimum(self.size * (share + (high - share) * shrink), most),
        )

    def estimate_sum(self, coefficients: np.ndarray) -> tuple[float, float, float]:
        """Estimate a weighted sum of the numbers of wrong items, float [strata], with its 95 % limits.

        The limits of the strata are combined by the method of variance estimates recovery (MOVER; Zou and Donner 2008,
        Statistics in Medicine 27:1693), which keeps their asymmetry: a stratum without a wrong item may have some.
        Those of strata without a judgement, about which chance says nothing, are added up.
        """
        total, low, high = self.bound_totals()
        value = float(coefficients @ total)
        below = coefficients * (total - np.where(coefficients > 0, low, high))
        above = coefficients * (np.where(coefficients > 0, high, low) - total)
        half = [np.linalg.norm(side[self.judged > 0]) + side[self.judged == 0].sum() for side in (below, above)]
        return value, value - float(half[0]), value + float(half[1])

    def estimate_share(self, chosen: np.ndarray) -> dict[str, float | list[float] | None]:
        """Estimate the fraction of all wrong items that is in the `chosen` strata (bool [strata]): `value` and `ci95`.

        A limit is the fraction f at which the interval of (1 - f) x chosen - f x others begins or ceases to include 0.
        The value is None if no item seems to be wrong.
        """
        (total, _, _), ones = self.bound_totals(), chosen.astype(float)
        value = float(total[chosen].sum() / total.sum()) if total.sum() else None

        def find(side: int) -> float:
            def edge(share: float) -> float:
                return self.estimate_sum(ones - share)[side]

            ends = edge(0.0), edge(1.0)
            return float(optimize.brentq(edge, 0.0, 1.0)) if ends[0] > 0 > ends[1] else float(ends[0] > 0)

        return {"value": value, "ci95": [find(1), find(2)]}


def estimate_share(log_ratios: np.ndarray, cluster: np.ndarray | None = None) -> dict[str, Any]:
    """Estimate the fraction of items that come from q and not from p, where `log_ratios` are log(p / q) of each item.

    The estimate has the largest likelihood of prod_i [(1 - share) p_i + share q_i], which is concave in the share. Its
    interval is Wald's, with the variance of the score over clusters (a sandwich estimate), cut to [0, 1].

    Args:
        log_ratios: float [items], finite.
        cluster: int [items], what dependent items share, such as the sample of a sentence; None means independent.

    Returns `value`, `ci95` (None for fewer than two clusters), and `n`, the number of items.

    Raises ValueError if there is no item, or a ratio is not finite.

    Example:
        >>> round(estimate_share(np.array([9.0, 9.0, 9.0, -9.0]))["value"], 3)
        0.25
    """
    if not len(log_ratios) or not np.isfinite(log_ratios).all():
        raise ValueError("log_ratios: at least one is needed, and all must be finite")
    excess = np.expm1(np.clip(-log_ratios.astype(np.float64), None, 700.0))  # q / p - 1

    def compute_scores(share: float) -> np.ndarray:
        return excess / (1 + share * excess)

    low, high = 0.0, 1 - 1e-12
    if compute_scores(low).sum() <= 0:
        value = low
    elif compute_scores(high).sum() >= 0:
        value = high
    else:
        value = float(optimize.brentq(lambda share: compute_scores(share).sum(), low, high, xtol=1e-12))
    scores = compute_scores(value)
    groups = np.arange(len(scores)) if cluster is None else np.unique(cluster, return_inverse=True)[1]
    interval = None
    if groups.max() > 0:
        information = (scores**2).sum()  # 0 if no item distinguishes p from q: any share is as likely
        error = np.sqrt((np.bincount(groups, scores) ** 2).sum()) / information if information else np.inf
        half = float(stats.norm.ppf(0.975) * error)
        interval = [max(value - half, 0.0), min(value + half, 1.0)]
    return {"value": value, "ci95": interval, "n": len(log_ratios)}


def compute_posterior(log_ratios: np.ndarray, share: float) -> np.ndarray:
    """Compute the probability that each item comes from q, float64 [items], given the fraction of such items."""
    return special.expit(special.logit(share) - log_ratios)
