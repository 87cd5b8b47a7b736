"""Scores that are computed once, with the model before training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cal_cli.objective.contrast import Contrast, contrast
from cal_cli.objective.forward import run_with_image
from cal_cli.objective.rule_loss import RuleLoss

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def score_before_training(objective: RuleLoss, model: PreTrainedModel, batch: Mapping[str, Any]) -> Contrast:
    """Compute once the scores that an objective reads in every step, see `RuleLoss.condition_before_training`.

    Args:
        objective: one whose `contrast` is `cached`, or whose rule is computed once.
        model: the model before training.
        batch: as the objective takes it.
    """
    condition = objective.condition_before_training or objective.rule.contrast
    with torch.no_grad():
        forward = run_with_image(model, batch)
        return contrast(forward, condition, objective.score, objective.ratio, objective.sigma, objective.reference)


def scores_without_image(objective: RuleLoss, model: PreTrainedModel, batch: Mapping[str, Any]) -> Tensor:
    """Compute once the scores that `contrast="cached"` later reads from its batches.

    Args:
        objective: its `score`, and what is cached: the scores of its `reference` if it has one, those of the blurred
            image if it has a `sigma`, else those of the rule's own contrast, which for CAL is the model itself without
            the image.
        model: the model before training.
        batch: as the objective takes it.

    Returns:
        float32 [batch, length], at the labels' positions; nan where none is supervised.
    """
    found = score_before_training(objective, model, batch)
    scores = found.without_image.new_full(found.batch_shape, torch.nan)
    scores[found.sample_index, found.position] = found.without_image
    return scores
