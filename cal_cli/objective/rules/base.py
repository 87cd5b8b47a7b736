"""What a weight rule is: the scores that it is given, and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor


@dataclass
class TokenScores:
    """The scores of label tokens; all fields are [tokens], in reading order, without gradient.

    Fields that the rule does not read are None.

    Attributes:
        with_image: float32, the label's logit or log-probability given the image and the text before it.
        without_image: float32, the same score given the text alone, or whatever the image is compared with.
        sample_index: int64, the sample that each token belongs to.
        turn_index: int64, the answer that it belongs to.
        sentence_index: int64, the sentence that it belongs to; None if the loss does not know where sentences end.
        entropy: float32, the entropy of the prediction with the image, in nats.
        given: float32, the weights that come with the data.
    """

    with_image: Tensor = None  # type: ignore[assignment]
    without_image: Tensor = None  # type: ignore[assignment]
    sample_index: Tensor = None  # type: ignore[assignment]
    turn_index: Tensor | None = None
    sentence_index: Tensor | None = None
    entropy: Tensor = None  # type: ignore[assignment]
    given: Tensor = None  # type: ignore[assignment]

    @property
    def delta(self) -> Tensor:
        """float32 [tokens], the score with the image minus the score without it."""
        return self.with_image - self.without_image

    def __getitem__(self, chosen: Any) -> TokenScores:
        """Return the scores of some tokens: a slice, or a bool or int64 tensor."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        found: dict[str, Any] = {name: None if value is None else value[chosen] for name, value in values.items()}
        return TokenScores(**found)


class WeightRule:
    """A rule: `weights = rule(scores)`, float32 [tokens]. It knows nothing of models and batches.

    Attributes:
        score: what it reads, `logit` or `logprob`.
        reads: the fields of `TokenScores` that it needs, of `with_image`, `without_image`, `entropy` and `given`. A
            rule that reads `without_image` is given only the tokens of samples with an image, and the others have
            weight 1.
        contrast: what the image is compared with unless the loss says otherwise, see `conditions.py`.
        mixes_samples: whether a token's weight depends on other samples of the batch.
        once: whether the weights are computed once, for all samples together, with the model before training.
    """

    score: ClassVar[Any] = "logprob"  # a rule may make it a field
    reads: ClassVar[tuple[str, ...]] = ("with_image", "without_image")
    contrast: ClassVar[str] = "no_image"
    mixes_samples: ClassVar[bool] = False
    once: ClassVar[bool] = False

    @property
    def contrasts(self) -> bool:
        """Whether it needs a second score."""
        return "without_image" in self.reads

    @property
    def state(self) -> dict[str, Any]:
        """What the rule has learnt from the data while training, as JSON; empty for most rules."""
        return {}

    @property
    def estimates(self) -> dict[str, float]:
        """The numbers to log of what it has learnt."""
        return self.state

    def measure(self, scores: TokenScores) -> Tensor | None:
        """Return what `learn` needs of a batch, float32 [any], summable over batches; None if nothing is learnt."""
        return None

    def learn(self, measured: Tensor) -> WeightRule:
        """Return the rule after an optimizer step, in whose batches the sum was `measured`."""
        return self

    def restore(self, state: dict[str, Any]) -> WeightRule:
        """Return the rule with what it had learnt, see `state`."""
        return replace(self, **state) if state else self  # type: ignore[type-var]

    def describe(self, delta: Tensor) -> dict[str, Tensor]:
        """Return shares of tokens to log: from names to bool [tokens]."""
        return {}

    def __call__(self, scores: TokenScores) -> Tensor:
        """Compute the weights, float32 [tokens]."""
        raise NotImplementedError
