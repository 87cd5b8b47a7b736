"""Losses of publications: CAL, and PRIOR."""

from __future__ import annotations

from typing import Any

from cal_cli.objective.rule_loss import RuleLoss
from cal_cli.objective.rules import ClampedDifference, TextImprobability


class ContrastiveAlignmentLoss(RuleLoss):
    """Contrastive alignment (CAL) for any training loop: `out = loss(model, batch); out.loss.backward()`.

    Args:
        score: what is contrasted: `logit` (the paper) or `logprob` (pointwise mutual information).
        alpha: lower bound of a weight, at least 0.
        beta: upper bound of a weight.
        window: width in tokens of the average over neighbouring weights, odd; 1 pools nothing.
        normalization: see `WeightedLoss`.
        pooling, contrast, ratio, sigma, reference: see `RuleLoss`; the paper contrasts with `no_image`.

    Raises:
        ValueError: an option outside its range, or one that the chosen contrast does not use.

    Source: arXiv 2405.17871, Algorithm 1; `flat` and `batch` from its released code; contrasts from its tables 8, 9.
    """

    def __init__(
        self,
        score: str = "logit",
        alpha: float = 1.0,
        beta: float = 5.0,
        window: int = 3,
        normalization: str = "batch",
        pooling: str = "answer",
        contrast: str = "no_image",
        ratio: float | None = None,
        sigma: float | None = None,
        reference: Any = None,
        shuffled: bool = False,
    ) -> None:
        rule = ClampedDifference(score, alpha, beta)
        super().__init__(rule, contrast, window, pooling, shuffled, normalization, ratio, sigma, reference)


class PriorLoss(RuleLoss):
    """PRIOR: tokens that the text alone predicts well count little; `w = 1 - P_reference(token | text before)`.

    Its authors train the reference model on the captions alone. The model's own frozen copy from before training,
    which reads the text alone, can replace it.

    Args:
        contrast: `reference`, or `cached`: the reference model's log-probabilities, computed once.
        reference: the frozen text-only model, with the tokenizer of the model in training.
        normalization: `length`, as published: each sample by its own weights, times its number of tokens.

    Raises:
        ValueError: an option outside its range.

    Source: Chen et al., "Prioritizing Image-Related Tokens Enhances Vision-Language Pre-Training", arXiv 2505.08971.
    """

    def __init__(self, contrast: str = "reference", normalization: str = "length", reference: Any = None) -> None:
        if contrast not in ("reference", "cached"):
            raise ValueError(f"contrast={contrast}: allowed are reference and cached")
        super().__init__(TextImprobability(), contrast, normalization=normalization, reference=reference)
