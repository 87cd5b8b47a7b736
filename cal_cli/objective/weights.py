"""From scores to shares of the loss: clamp, pool and normalise (steps 3 to 5 of the paper's Algorithm 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def clamp_delta(delta: Tensor, alpha: float, beta: float, has_image: Tensor | None = None) -> Tensor:
    """Compute `clamp(delta, alpha, beta)` (Algorithm 1, step 3); tokens of samples without an image get weight 1.

    Args:
        delta: float [tokens], the score with the image minus the score without it.
        alpha: lower bound of a weight.
        beta: upper bound of a weight.
        has_image: bool [tokens], whether the token's sample shows an image; None means that all do.

    Returns float [tokens].
    """
    weights = delta.clamp(alpha, beta)
    return weights if has_image is None else torch.where(has_image, weights, torch.ones_like(weights))


def token_weights(
    delta: Tensor,
    sample_index: Tensor,
    alpha: float = 1.0,
    beta: float = 5.0,
    window: int = 3,
    has_image: Tensor | None = None,
) -> Tensor:
    """Clamp, then average over neighbouring supervised tokens of the same sample (Algorithm 1, steps 3 and 4).

    A window that extends beyond the first or last supervised token of its sample averages over the tokens inside:
    padding is not counted.

    Args:
        delta: float [tokens], all supervised tokens of a batch, sample after sample in reading order.
        sample_index: int64 [tokens], the sample that each token belongs to.
        alpha: lower bound of a weight, at most `beta`.
        beta: upper bound of a weight.
        window: width of the average in tokens, odd; 1 pools nothing.
        has_image: bool [tokens], whether the token's sample shows an image; None means that all do.

    Returns float [tokens], in [alpha, beta] for samples with an image and 1 for samples without.

    Raises ValueError for `alpha` above `beta`, or a window that is not a positive odd number.

    Example:
        >>> token_weights(torch.tensor([0.0, 3.0, 9.0]), torch.tensor([0, 0, 0]))
        tensor([2., 3., 4.])
    """
    check_bounds(alpha, beta)
    return pool_answers(clamp_delta(delta, alpha, beta, has_image), sample_index, window)


def pool_answers(weights: Tensor, sample_index: Tensor, window: int) -> Tensor:
    """Average over neighbouring supervised tokens of the same sample (Algorithm 1, step 4); see `token_weights`.

    Args:
        weights: float [tokens].
        sample_index: int64 [tokens], the sample that each token belongs to.
        window: width of the average in tokens, odd.

    Returns float [tokens].

    Raises ValueError for a window that is not a positive odd number.
    """
    check_window(window)
    reach = window // 2
    neighbours = F.pad(weights, (reach, reach)).unfold(0, window, 1)  # [tokens, window]
    owners = F.pad(sample_index, (reach, reach), value=-1).unfold(0, window, 1)
    same_sample = owners == sample_index[:, None]
    # not a product: a nan in one sample must not reach the next
    return torch.where(same_sample, neighbours, 0).sum(dim=1) / same_sample.sum(dim=1)


def pool_flat(weights: Tensor, flat_index: Tensor, size: int, window: int) -> Tensor:
    """Pool along the flattened (batch x sequence) axis, as the paper's released code does.

    Neighbours count whether they are supervised or not, across the edges of answers and of samples; only the two ends
    of the flattened batch are not counted as padding.

    Args:
        weights: float [positions], clamped weights of every position within the window of a wanted one.
        flat_index: int64 [positions], their indices in the flattened batch.
        size: length of the flattened batch.
        window: width of the average, odd.

    Returns float [positions]; correct only for those whose whole window was given.
    """
    flat = weights.new_zeros(size)
    flat[flat_index] = weights
    pooled = F.avg_pool1d(flat[None, None], window, stride=1, padding=window // 2, count_include_pad=False)
    return pooled[0, 0, flat_index]


def check_bounds(alpha: float, beta: float) -> None:
    """Raise ValueError unless 0 <= alpha <= beta and beta is above 0."""
    if not 0 <= alpha <= beta or not 0 < beta < math.inf:
        raise ValueError(f"alpha={alpha}, beta={beta}: the bounds must satisfy 0 <= alpha <= beta, 0 < beta")


def check_window(window: int) -> None:
    """Raise ValueError unless the window is a positive odd number."""
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window={window}: the pooling window must be a positive odd number (1 pools nothing)")


NORMALIZATIONS = ("batch", "tokens", "sample", "length", "device_batch")
EPSILON = 1e-6  # as in the released code; keeps the loss finite if all weights of a batch are 0


def normalize_within_samples(weights: Tensor, sample_index: Tensor, normalization: str) -> Tensor:
    """Compute each token's share of the loss times the divisor of the batch, float32 [tokens], from its sample alone.

    The loss is sum(share * cross-entropy). The shares are w / sum(w) for `batch` and `device_batch`; w / tokens for
    `tokens`; w / sum of the sample's w / samples for `sample`; and w / sum of the sample's w * its tokens / all tokens
    for `length`.

    Args:
        weights: float32 [tokens].
        sample_index: int64 [tokens], the sample that each token belongs to.
        normalization: one of `NORMALIZATIONS`.
    """
    if normalization not in ("sample", "length"):
        return weights
    samples, member = sample_index.unique(return_inverse=True)
    zeros = weights.new_zeros(len(samples))
    share = weights / (zeros.index_add(0, member, weights) + EPSILON)[member]
    if normalization == "sample":
        return share
    return share * zeros.index_add(0, member, torch.ones_like(weights))[member]


def compute_divisor(weights: Tensor, sample_index: Tensor, normalization: str) -> Tensor:
    """Compute what a batch's loss is divided by: the sum of its weights, its number of tokens or samples, a scalar."""
    if normalization in ("batch", "device_batch"):
        return weights.sum() + EPSILON
    return weights.new_tensor(len(sample_index.unique()) if normalization == "sample" else len(weights))
