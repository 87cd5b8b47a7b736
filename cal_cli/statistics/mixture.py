"""The fraction of one component of a mixture of two, from each item's ratio of likelihoods."""

from typing import Any

import numpy as np
from scipy import optimize, special, stats


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
