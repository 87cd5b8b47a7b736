"""How well delta separates tokens that do not describe their picture from those that do."""

import numpy as np
from scipy import stats


def compute_noise_auc(delta: np.ndarray, is_noise: np.ndarray) -> float:
    """Compute the area under the ROC curve of a low delta as a detector of tokens that do not describe their picture.

    This is the probability that such a token has the lower delta of a pair, with ties counted half:
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
        delta, is_noise: as in `compute_noise_auc`; samples with such tokens and without them are drawn apart.
        sample: int [tokens], the sample that each token belongs to.
        resamples, seed: number of draws, and their seed.
    """
    members = [np.flatnonzero(sample == number) for number in np.unique(sample)]
    noisy = np.array([is_noise[tokens].any() for tokens in members])

    def statistic(clean: np.ndarray, noise: np.ndarray) -> float:
        tokens = np.concatenate([members[int(number)] for number in (*clean, *noise)])
        return compute_noise_auc(delta[tokens], is_noise[tokens])

    # noisy and clean samples are drawn separately, so that their numbers are the same in every resample
    kinds = (np.flatnonzero(~noisy), np.flatnonzero(noisy))
    drawn = stats.bootstrap(kinds, statistic, n_resamples=resamples, vectorized=False, method="percentile", rng=seed)
    return float(drawn.confidence_interval.low), float(drawn.confidence_interval.high)
