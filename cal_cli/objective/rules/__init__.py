"""Weight rules: from the scores of label tokens to the weight of each token in the loss.

A rule knows nothing of models or batches. Its attributes say what it needs. `RuleLoss` computes these scores, pools the
weights and normalises them. A rule of your own is a dataclass like these, see `WeightRule`.
"""

from cal_cli.objective.rules.base import (
    ClampedDifference,
    EqualWeights,
    GivenWeights,
    NegativeDifference,
    ProbabilityPower,
    ProbabilityRatio,
    TextImprobability,
    TokenScores,
    TopExcess,
    VisualDependence,
    VisualInformationGain,
    WeightRule,
)
from cal_cli.objective.rules.posterior import MismatchPosterior
from cal_cli.objective.rules.sample_losses import LossMixture, LossTruncation

__all__ = [
    "ClampedDifference",
    "EqualWeights",
    "GivenWeights",
    "LossMixture",
    "LossTruncation",
    "MismatchPosterior",
    "NegativeDifference",
    "ProbabilityPower",
    "ProbabilityRatio",
    "TextImprobability",
    "TokenScores",
    "TopExcess",
    "VisualDependence",
    "VisualInformationGain",
    "WeightRule",
]
