"""Losses composed of a weight rule, what the image is compared with, pooling and normalisation, such as CAL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cal_cli.objective.conditions import CONTRASTS, check_contrast_options, score_without_image
from cal_cli.objective.forward import GIVEN_WEIGHTS, ForwardPass, Positions, score_labels
from cal_cli.objective.loss import LossOutput, Weighing, WeightedLoss, check_choices
from cal_cli.objective.normalization import NORMALIZATIONS, compute_divisor, normalize_within_samples
from cal_cli.objective.rules import TokenScores, WeightRule
from cal_cli.objective.sentences import split_sentences
from cal_cli.objective.weights import check_window, pool_answers, pool_flat

POOLINGS = ("answer", "flat")


@dataclass
class RuleLoss(WeightedLoss):
    """Cross-entropy of the supervised tokens, weighted by a rule: `loss = RuleLoss(ProbabilityRatio(), window=3)`.

    A second pass runs only if the rule contrasts. Tokens of samples without an image then have weight 1.

    Some rules learn something from the data, as `MismatchPosterior` does: `loss.learn(out.measured)` after each
    optimizer step replaces the rule by one that has learnt from it. `CALTrainer` does so, with the sum over all
    micro-batches and processes.

    Args:
        rule: computes the weights from the scores, see `rules`.
        contrast: what the image is compared with, see `conditions.py`; None means the rule's own.
        window: width in tokens of the average over neighbouring weights, odd; 1 pools nothing.
        pooling: `answer` averages over the supervised tokens of one sample; `flat` along the flattened
            (batch x sequence) axis, supervised or not, as CAL's released code does.
        shuffled: permute the pooled weights among the supervised tokens of the batch: a control with the same histogram
            and no information.
        normalization: see `WeightedLoss`.
        ratio: share of the patches that `contrast="masked_patches"` covers; None means 0.5.
        sigma: standard deviation of `contrast="blur"` in pixels; None means 1. With `contrast="cached"`, the cached
            scores are those of the blurred image.
        reference: the frozen model of `contrast="reference"`, and of `contrast="cached"` if it is not None.
        sentence_ends: int64 [any], see `find_sentence_ends`, for a rule that tells sentences apart.

    Raises:
        ValueError: an option outside its range, or one that has no effect.
    """

    rule: WeightRule
    contrast: str | None = None
    window: int = 1
    pooling: str = "answer"
    shuffled: bool = False
    normalization: str = "batch"
    ratio: float | None = None
    sigma: float | None = None
    reference: Any = None
    sentence_ends: Any = None

    def __post_init__(self) -> None:
        check_window(self.window)
        check_choices(self, pooling=POOLINGS, normalization=NORMALIZATIONS)
        if not self.rule.contrasts and self.contrast is not None:
            raise ValueError(
                f"contrast={self.contrast} has no effect: {type(self.rule).__name__} reads no score without the image"
            )
        if self.rule.contrasts and self.contrast is None:
            self.contrast = self.rule.contrast
        if self.contrast is not None:
            check_choices(self, contrast=CONTRASTS)
        check_contrast_options(self.contrast, self.ratio, self.sigma, self.reference)
        if self.contrast in ("cached", "reference") and self.pooling == "flat":
            raise ValueError(f"contrast={self.contrast} only knows supervised tokens: use pooling=answer")
        if self.rule.once and self.contrast not in ("no_image", "blur", "reference"):
            raise ValueError(
                f"contrast={self.contrast}: {type(self.rule).__name__} is computed once before training; allowed are "
                "no_image, blur and reference"
            )

    @property
    def score(self) -> str:
        """What the rule reads, `logit` or `logprob`."""
        return self.rule.score

    @property
    def reach(self) -> int:  # type: ignore[override]
        """Flat pooling also reads the neighbours of supervised positions."""
        return self.window // 2 if self.pooling == "flat" else 0

    @property
    def condition_before_training(self) -> str | None:
        """The contrast whose scores are computed once before training; None if they are computed in each step."""
        if self.rule.once or self.contrast != "cached":
            return self.contrast if self.rule.once else None
        if self.reference is not None:
            return "reference"
        return self.rule.contrast if self.sigma is None else "blur"

    @property
    def weighs_in_chunks(self) -> bool:
        """Whether the weights need only a sample's own log-probabilities, which the cross-entropy computes anyway."""
        alone = not (self.rule.mixes_samples or self.shuffled or self.rule.once or self.pooling == "flat")
        return (
            alone and self.score == "logprob" and "with_image" in self.rule.reads and "entropy" not in self.rule.reads
        )

    @property
    def state(self) -> dict[str, Any]:
        return self.rule.state

    @property
    def estimates(self) -> dict[str, float]:
        return self.rule.estimates

    def learn(self, measured: Tensor) -> None:
        self.rule = self.rule.learn(measured)

    def restore(self, state: dict[str, Any]) -> None:
        self.rule = self.rule.restore(state)

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        return self.rule.describe(delta)

    def score_tokens(self, forward: ForwardPass, in_chunks: bool = False) -> TokenScores:
        """Compute the scores that the rule reads, of all positions; 0 for `with_image` if it is computed in chunks."""
        positions, reads = forward.positions, self.rule.reads
        scores = TokenScores(sample_index=positions.rows, turn_index=positions.turns)
        if self.sentence_ends is not None:
            scores.sentence_index = split_sentences(positions, self.sentence_ends)
        if self.rule.once:
            reads = ("given",)
        if in_chunks:
            scores.with_image = torch.zeros_like(positions.labels, dtype=torch.float32)
        elif "with_image" in reads:
            scores.with_image = score_labels(forward.head, forward.hidden, positions.labels, self.score)
        if "without_image" in reads:
            assert self.contrast is not None
            found = score_without_image(forward, self.contrast, self.score, self.ratio, self.sigma, self.reference)
            scores.without_image = found.new_zeros(len(positions.labels))
            scores.without_image[positions.has_image] = found
        if "entropy" in reads:
            scores.entropy = forward.head.entropies(forward.hidden)
        if "given" in reads:
            scores.given = read_given_weights(forward)
        return scores

    def weigh_scores(self, scores: TokenScores, has_image: Tensor) -> Tensor:
        """Compute the weights before pooling, float32 [tokens]; `has_image` is bool [tokens]."""
        if self.rule.once:
            return scores.given
        if not self.rule.contrasts:
            return self.rule(scores)
        shown = has_image.nonzero()[:, 0]  # once: on a GPU each choice by a mask waits for the device
        return torch.ones_like(has_image, dtype=torch.float32).index_copy(0, shown, self.rule(scores[shown]).float())

    def weigh(self, forward: ForwardPass) -> Weighing:
        scores = self.score_tokens(forward)
        return Weighing(self.weigh_positions(scores, forward), *self._observe(scores, forward.positions))

    def weigh_positions(self, scores: TokenScores, forward: ForwardPass) -> Tensor:
        """Compute the pooled weights of all positions, float32 [positions]."""
        positions = forward.positions
        weights = self.weigh_scores(scores, positions.has_image)
        if self.pooling == "answer":
            weights = pool_answers(weights, positions.rows, self.window)
        else:
            rows, columns = forward.batch["input_ids"].shape
            columns -= 1  # nothing predicts the first token
            weights = pool_flat(weights, positions.rows * columns + positions.columns, rows * columns, self.window)
        if self.shuffled:
            among = weights[positions.supervised]
            weights[positions.supervised] = among[torch.randperm(len(among), device=among.device)]
        return weights

    def compute(self, forward: ForwardPass) -> LossOutput:
        """Compute the loss; where possible, the weights of a chunk of samples while their logits exist."""
        if not self.weighs_in_chunks:
            return super().compute(forward)
        positions = forward.positions
        with torch.no_grad():
            scores = self.score_tokens(forward, in_chunks=True)
        weights = torch.empty_like(scores.with_image)

        def weigh(part: slice, logprobs: Tensor) -> Tensor:
            scores.with_image[part] = logprobs
            found, rows = self.weigh_scores(scores[part], positions.has_image[part]), positions.rows[part]
            weights[part] = pool_answers(found, rows, self.window)
            return normalize_within_samples(weights[part], rows, self.normalization)

        samples = positions.rows.unique_consecutive(return_counts=True)[1].tolist()
        total, cross_entropy = forward.head.weighted_cross_entropy(forward.hidden, positions.labels, weigh, samples)
        divisor = compute_divisor(weights, positions.rows, self.normalization)
        denominator = torch.ones_like(divisor) if self.normalization == "device_batch" else divisor
        delta, measured = self._observe(scores, positions)
        return LossOutput(total / divisor, cross_entropy, weights, delta, denominator, measured)

    def _observe(self, scores: TokenScores, positions: Positions) -> tuple[Tensor | None, Tensor | None]:
        """Return delta, float32 [positions] (0 without an image, None if it is unknown), and what the rule measures."""
        if self.rule.once:
            return None, None
        delta = None
        if {"with_image", "without_image"} <= set(self.rule.reads):
            delta = torch.where(positions.has_image, scores.delta, 0.0)
        shown = scores[positions.has_image.nonzero()[:, 0]] if self.rule.contrasts else scores
        return delta, self.rule.measure(shown)


def read_given_weights(forward: ForwardPass) -> Tensor:
    """Read the weights that come with a batch, float32 [positions]; raises ValueError if there are none."""
    given = forward.batch.get(GIVEN_WEIGHTS)
    if given is None:
        raise ValueError(
            f"the rule reads {GIVEN_WEIGHTS} (float32 [batch, length], at the labels' positions): the batch has none"
        )
    return given[forward.positions.rows, forward.positions.columns + 1].float()
