"""The paper's mathematics, for any training loop: it needs torch and a `transformers` model, nothing else.

Read `contrast.py` (two passes, one number a token), `weights.py` (clamp and pool), `loss.py` (the weighted mean).
"""

from cal_cli.objective.contrast import Contrast, contrast_logits
from cal_cli.objective.loss import ContrastiveAlignmentLoss, LossOutput
from cal_cli.objective.weights import token_weights

__all__ = ["Contrast", "ContrastiveAlignmentLoss", "LossOutput", "contrast_logits", "token_weights"]
