"""The paper's mathematics, for any training loop; it needs only torch and a `transformers` model.

Reading order: `passes.py` (the decoder with the image, and again on the text alone), `contrasts.py` (what the image is
compared with), `rules` (from scores to weights), `weights.py` (clamp, pool, normalise), `head.py` (the vocabulary, in
chunks), `loss.py` (the composition of these, with CAL as one), `distributed.py` (under DDP and FSDP).
"""

from cal_cli.objective.contrasts import Contrast, contrast_logits
from cal_cli.objective.distributed import accept_objective
from cal_cli.objective.loss import (
    ContrastiveAlignmentLoss,
    CrossEntropyLoss,
    LossOutput,
    NonFiniteLoss,
    PriorLoss,
    RuleLoss,
    WeightedLoss,
    scores_without_image,
)
from cal_cli.objective.passes import IGNORED
from cal_cli.objective.weights import token_weights

__all__ = [
    "IGNORED",
    "Contrast",
    "ContrastiveAlignmentLoss",
    "CrossEntropyLoss",
    "LossOutput",
    "NonFiniteLoss",
    "PriorLoss",
    "RuleLoss",
    "WeightedLoss",
    "accept_objective",
    "contrast_logits",
    "scores_without_image",
    "token_weights",
]
