"""How well delta separates kinds of tokens, and its distribution (Figure 4 of the paper)."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

from cal_cli.inspection.tokens import CONTRADICTED_WORD, CORRELATED_WORD, IRRELEVANT_WORD
from cal_cli.runtime.files import encode_figure

# what is high for the tokens of a kind: delta, minus delta, and how near delta is to 0
EVIDENCE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    CORRELATED_WORD: np.positive,
    IRRELEVANT_WORD: lambda delta: -np.abs(delta),
    CONTRADICTED_WORD: np.negative,
}


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


def trace_detector(evidence: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return false positive rate, recall and precision at each threshold from the highest, float64 [thresholds]."""
    order = np.argsort(-evidence, kind="stable")
    last = np.append(np.diff(evidence[order]) != 0, True)  # of equal values
    detected, true = np.arange(1, len(order) + 1)[last], positive[order].cumsum()[last]
    return (detected - true) / (~positive).sum(), true / positive.sum(), true / detected


def describe_detector(evidence: np.ndarray, positive: np.ndarray) -> dict[str, Any]:
    """Describe how well evidence detects positive samples: `auc`, its `ci95` over samples, and `average_precision`.

    The last is the precision at each threshold, weighted by the recall gained there.
    """
    interval = estimate_auc_interval(evidence, positive, np.arange(len(evidence)))
    _, recall, precision = trace_detector(evidence, positive)
    average = float((np.diff(recall, prepend=0.0) * precision).sum())
    return {"auc": compute_auc(evidence, positive), "ci95": interval, "average_precision": average}


def draw_detectors(evidence: Mapping[str, np.ndarray], positive: np.ndarray) -> bytes:
    """Draw the ROC and precision-recall curves of several detectors as a PNG; see `compute_auc` for the arguments."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    roc, precision_recall = figure.subplots(1, 2)
    for name, values in evidence.items():
        false, recall, precision = trace_detector(values, positive)
        roc.plot([0, *false], [0, *recall], label=name)
        precision_recall.plot(recall, precision)
    roc.set(xlabel="false positive rate", ylabel="recall")
    precision_recall.set(xlabel="recall", ylabel="precision", ylim=(0, 1.05))
    figure.legend(loc="outside lower center", ncols=len(evidence), fontsize=8)
    return encode_figure(figure)


def describe_kinds(delta: np.ndarray, weight: np.ndarray, kind: np.ndarray, sample: np.ndarray) -> dict[str, Any]:
    """Describe the tokens of each kind of word: number, mean delta and weight, and delta as a detector of the kind.

    Args:
        delta, weight: float [tokens].
        kind: str or None [tokens]; tokens of an unknown kind are left out.
        sample: int [tokens], the sample that each token belongs to.

    Returns:
        For each kind that occurs `tokens`, `delta` and `weight`, and, if another occurs too, `auc` and its `ci95`.
    """
    kinds: dict[str, Any] = {}
    known = np.array([of_token is not None for of_token in kind])
    delta, weight, kind, sample = delta[known], weight[known], kind[known], sample[known]
    for name, evidence in EVIDENCE.items():
        of_it = kind == name
        if of_it.any():
            kinds[name] = {
                "tokens": int(of_it.sum()),
                "delta": float(delta[of_it].mean()),
                "weight": float(weight[of_it].mean()),
            }
            if not of_it.all():
                scores = evidence(delta)
                interval = estimate_auc_interval(scores, of_it, sample)
                kinds[name] |= {"auc": compute_auc(scores, of_it), "ci95": interval}
    return kinds


def draw_histogram(deltas: Mapping[str, np.ndarray], title: str = "", bound: float = 5.0) -> bytes:
    """Draw distributions of delta (float [tokens]) by their names as a PNG.

    The label of each has its number of tokens, and the fraction at or below `bound`, the paper's upper clamp bound.
    """
    figure = Figure(figsize=(7, 4 + 0.2 * len(deltas)), layout="constrained")
    axes = figure.subplots()
    together = np.concatenate(list(deltas.values()))
    low, high = np.floor(together.min()), np.ceil(together.max())
    bins: Any = np.linspace(low, max(high, low + 1), 61)
    for name, delta in deltas.items():
        label = f"{name}: {len(delta):,} tokens, {(delta <= bound).mean():.1%} at or below {bound:g}"
        axes.hist(delta, bins, histtype="stepfilled" if len(deltas) < 3 else "step", alpha=0.6, label=label)
    axes.axvline(bound, color="black", linestyle="--")
    axes.set(xlabel="delta (with image minus without)", ylabel="tokens", yscale="log", title=title)
    figure.legend(loc="outside lower center", fontsize=8)
    return encode_figure(figure)
