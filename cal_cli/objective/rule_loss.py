"""A loss composed of a weight rule, what the image is compared with, pooling and normalisation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cal_cli.objective.conditions import CONTRASTS, check_contrast_options
from cal_cli.objective.contrast import contrast
from cal_cli.objective.forward import ForwardPass, score_labels
from cal_cli.objective.loss import NORMALIZATIONS, WeightedLoss, check_choices
from cal_cli.objective.rules import TokenScores, WeightRule
from cal_cli.objective.weights import check_window, pool_answers


@dataclass(frozen=True)
class RuleLoss(WeightedLoss):
    """Cross-entropy of the supervised tokens, weighted by a rule: `loss = RuleLoss(ProbabilityRatio(), window=3)`.

    A second pass runs only if the rule contrasts. Tokens of samples without an image then have weight 1.

    Args:
        rule: computes the weights from the scores, see `rules.py`.
        contrast: what the image is compared with, see `conditions.py`; None means `no_image` for a rule that contrasts.
        window: width in tokens of the average over neighbouring weights of a sample, odd; 1 pools nothing.
        normalization: see `WeightedLoss`.
        ratio: share of the patches that `contrast="masked_patches"` covers; None means 0.5.
        sigma: standard deviation of `contrast="blur"` in pixels; None means 1.
        reference: the frozen model of `contrast="reference"`.

    Raises:
        ValueError: an option outside its range, or one that has no effect.
    """

    rule: WeightRule
    contrast: str | None = None
    window: int = 1
    normalization: str = "batch"
    ratio: float | None = None
    sigma: float | None = None
    reference: Any = None

    def __post_init__(self) -> None:
        check_window(self.window)
        check_choices(self, normalization=NORMALIZATIONS)
        if not self.rule.contrasts and self.contrast is not None:
            raise ValueError(
                f"contrast={self.contrast} has no effect: {type(self.rule).__name__} reads no score without the image"
            )
        if self.rule.contrasts and self.contrast is None:
            object.__setattr__(self, "contrast", "no_image")
        if self.contrast is not None:
            check_choices(self, contrast=CONTRASTS)
        check_contrast_options(self.contrast, ratio=self.ratio, sigma=self.sigma, reference=self.reference)

    @property
    def score(self) -> str:
        """What the rule reads, `logit` or `logprob`."""
        return self.rule.score

    def weigh(self, forward: ForwardPass) -> tuple[Tensor, Tensor | None]:
        positions = forward.positions
        if self.contrast is None:
            scores = score_labels(forward.head, forward.hidden, positions.labels, self.score)
            weights, delta = self.rule(TokenScores(scores, None, positions.rows)), None
        else:
            options = {"ratio": self.ratio, "sigma": self.sigma, "reference": self.reference}
            found = contrast(forward, self.contrast, self.score, **options)
            weights, delta = self.rule(TokenScores(found.with_image, found.without_image, positions.rows)), found.delta
            weights = torch.where(positions.has_image, weights, torch.ones_like(weights))
        return pool_answers(weights, positions.rows, self.window), delta
