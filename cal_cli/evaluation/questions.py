"""One question of a benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image


@dataclass
class Question:
    """A question, its right answers, and its images.

    Attributes:
        id: unique in its benchmark.
        picture: the same for all questions about the same images; None for a question without any.
        question: the text for the model, with `<image>` in the place of each image.
        answers: in the form that the metric needs; empty if they are not known, so that nothing is scored.
        images: opens the images, RGB, one for each `<image>`.
        tags: what else the metric needs, such as the question's kind.
    """

    id: str
    picture: str | None
    question: str
    answers: list[str]
    images: Callable[[], list[Image.Image]]
    tags: dict[str, str] = field(default_factory=dict)
