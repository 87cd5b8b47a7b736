"""A loss composed of a weight rule, what the image is compared with, pooling and normalisation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cal_cli.objective.conditions import CONTRASTS, check_contrast_options
from cal_cli.objective.contrast import contrast
from cal_cli.objective.forward import ForwardPass, score_labels
from cal_cli.objective.loss import Weighing, WeightedLoss, check_choices
from cal_cli.objective.normalization import NORMALIZATIONS
from cal_cli.objective.rules import TokenScores, WeightRule
from cal_cli.objective.weights import check_window, pool_answers


@dataclass
class RuleLoss(WeightedLoss):
    """Cross-entropy of the supervised tokens, weighted by a rule: `loss = RuleLoss(ProbabilityRatio(), window=3)`.

    A second pass runs only if the rule contrasts. Tokens of samples without an image then have weight 1.

    Some rules estimate something from the data, as `MismatchPosterior` does: `loss.learn(out.measured)` after each
    optimizer step replaces the rule by one with the new estimates. `CALTrainer` does so, with the sum over all
    micro-batches and processes.

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
            self.contrast = "no_image"
        if self.contrast is not None:
            check_choices(self, contrast=CONTRASTS)
        check_contrast_options(self.contrast, ratio=self.ratio, sigma=self.sigma, reference=self.reference)

    @property
    def score(self) -> str:
        """What the rule reads, `logit` or `logprob`."""
        return self.rule.score

    @property
    def estimates(self) -> dict[str, float]:
        return self.rule.estimates

    def learn(self, measured: Tensor) -> None:
        self.rule = self.rule.learn(measured)

    def restore(self, estimates: dict[str, float]) -> None:
        self.rule = self.rule.restore(estimates)

    def weigh(self, forward: ForwardPass) -> Weighing:
        positions = forward.positions
        if self.contrast is None:
            scores = score_labels(forward.head, forward.hidden, positions.labels, self.score)
            weights = self.rule(TokenScores(scores, None, positions.rows))
            return Weighing(pool_answers(weights, positions.rows, self.window))
        options = {"ratio": self.ratio, "sigma": self.sigma, "reference": self.reference}
        found = contrast(forward, self.contrast, self.score, **options)
        shown = positions.has_image
        scores_shown = TokenScores(found.with_image[shown], found.without_image[shown], positions.rows[shown])
        weights = torch.ones_like(found.with_image)
        weights[shown] = self.rule(scores_shown)
        weights = pool_answers(weights, positions.rows, self.window)
        return Weighing(weights, found.delta, self.rule.measure(scores_shown))
