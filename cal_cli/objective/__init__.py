"""The paper's mathematics, for any training loop: it needs torch and a `transformers` model, nothing else.

Read `contrast.py` (two passes, one number a token), `conditions.py` (what the image is held against), `weights.py`
(clamp and pool), `head.py` (the vocabulary, met in chunks), `loss.py` (the weighted mean).
"""

from cal_cli.objective.contrast import Contrast, contrast_logits
from cal_cli.objective.loss import (
    ContrastiveAlignmentLoss,
    LossOutput,
    NonFiniteLoss,
    PriorLoss,
    WeightedLoss,
    scores_without_image,
)
from cal_cli.objective.routing import accept_objective
from cal_cli.objective.weights import token_weights

__all__ = [
    "Contrast",
    "ContrastiveAlignmentLoss",
    "LossOutput",
    "NonFiniteLoss",
    "PriorLoss",
    "WeightedLoss",
    "accept_objective",
    "contrast_logits",
    "scores_without_image",
    "token_weights",
]
