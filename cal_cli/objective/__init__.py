"""The paper's mathematics, for any training loop; it needs only torch and a `transformers` model.

Reading order: `forward.py` (the pass with the image), `text_pass.py` (the pass without it), `conditions.py` (what the
image is compared with), `contrast.py` (both scores of each token), `weights.py` (clamp and pool), `rules` (from scores
to weights), `normalization.py` (shares of the loss), `head.py` (the vocabulary, in chunks), `loss.py` (the weighted
mean), `rule_loss.py` (the composition of these), `published_losses.py` (CAL as one).
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
from cal_cli.objective.passes import IGNORED, find_sentence_ends
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
    "find_sentence_ends",
    "scores_without_image",
    "token_weights",
]
