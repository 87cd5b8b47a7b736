"""What the weighted cross-entropies are divided by: each token's share of the loss."""

import torch
from torch import Tensor

NORMALIZATIONS = ("batch", "tokens", "sample", "length", "device_batch")
EPSILON = 1e-6  # as in the released code; keeps the loss finite if all weights of a batch are 0


def compute_shares(weights: Tensor, sample_index: Tensor, normalization: str) -> tuple[Tensor, Tensor]:
    """Compute each token's share of the loss, so that loss = sum(share * cross-entropy).

    Args:
        weights: float32 [tokens].
        sample_index: int64 [tokens], the sample that each token belongs to.
        normalization: `batch` and `device_batch`, w / sum(w); `tokens`, w / tokens; `sample`, w / sum of the sample's w
            / samples; `length`, w / sum of the sample's w * its tokens / all tokens.

    Returns:
        The shares, float32 [tokens], and the denominator that they have in common, a scalar, see `WeightedLoss`.
    """
    divisor = compute_divisor(weights, sample_index, normalization)
    shares = normalize_within_samples(weights, sample_index, normalization) / divisor
    return shares, torch.ones_like(divisor) if normalization == "device_batch" else divisor


def normalize_within_samples(weights: Tensor, sample_index: Tensor, normalization: str) -> Tensor:
    """Compute each token's share times the divisor of the batch, float32 [tokens], from its own sample alone."""
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
