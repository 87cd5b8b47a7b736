"""How well delta separates the tokens of exchanged captions from those of an image's own caption."""

import numpy as np
from scipy import stats


def compute_noise_auc(delta: np.ndarray, is_noise: np.ndarray) -> float:
    """Compute the area under the ROC curve of a low delta as a detector of exchanged captions' tokens.

    This is the probability that a token of an exchanged caption has the lower delta of a pair, with ties counted half:
    the Mann-Whitney U statistic divided by the number of pairs.

    Args:
        delta: float [tokens].
        is_noise: bool [tokens], with both values present.
    """
    clean, noise = delta[~is_noise], delta[is_noise]
    return float(stats.mannwhitneyu(clean, noise).statistic / (len(clean) * len(noise)))


def estimate_noise_auc_interval(
    delta: np.ndarray, is_noise: np.ndarray, sample: np.ndarray, resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """Estimate the 95 % percentile bootstrap interval of `compute_noise_auc`, by drawing samples with all their tokens.

    Args:
        delta: float [tokens].
        is_noise: bool [tokens], equal for all tokens of a sample.
        sample: int [tokens], the sample that each token belongs to.
        resamples: number of bootstrap draws.
        seed: of the draws.
    """
    generator = np.random.default_rng(seed)
    members = [np.flatnonzero(sample == number) for number in np.unique(sample)]
    kinds = np.array([is_noise[tokens[0]] for tokens in members])
    by_kind = (np.flatnonzero(~kinds), np.flatnonzero(kinds))
    values = []
    for _ in range(resamples):
        # noisy and clean samples are drawn separately, so that their numbers are the same in every resample
        drawn = np.concatenate([generator.choice(of_a_kind, len(of_a_kind)) for of_a_kind in by_kind])
        tokens = np.concatenate([members[number] for number in drawn])
        values.append(compute_noise_auc(delta[tokens], is_noise[tokens]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
