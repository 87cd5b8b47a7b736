"""How well delta tells the tokens of exchanged captions from those of a picture's own."""

import numpy as np
from scipy import stats


def noise_auc(delta: np.ndarray, is_noise: np.ndarray) -> float:
    """Area under the ROC curve of a low delta as the sign of an exchanged caption's token.

    It is the probability that a token of an exchanged caption has the lower delta of two, ties counted half: the
    Mann-Whitney U statistic over the number of pairs.

    Args:
        delta: float [tokens].
        is_noise: bool [tokens], with both kinds present.
    """
    clean, noise = delta[~is_noise], delta[is_noise]
    return float(stats.mannwhitneyu(clean, noise).statistic / (len(clean) * len(noise)))


def noise_auc_interval(
    delta: np.ndarray, is_noise: np.ndarray, sample: np.ndarray, resamples: int = 500, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of `noise_auc`, drawing samples, whose tokens belong together.

    Args:
        delta: float [tokens].
        is_noise: bool [tokens], the same within a sample.
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
        # noise and clean samples are drawn apart, so that each resample has both in the same numbers
        drawn = np.concatenate([generator.choice(of_a_kind, len(of_a_kind)) for of_a_kind in by_kind])
        tokens = np.concatenate([members[number] for number in drawn])
        values.append(noise_auc(delta[tokens], is_noise[tokens]))
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
