"""One question of a benchmark."""

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image


@dataclass
class Question:
    """One question, its right answers, and the picture that it is about.

    Attributes:
        id: unique in its benchmark.
        picture: the same for all questions about one picture; None: about none.
        question: what the model is asked, with `<image>` where a picture belongs.
        answers: as its metric takes them.
        images: opens the pictures, RGB, one for each `<image>`.
        tags: what else a metric needs to know, such as the question's kind.
    """

    id: str
    picture: str | None
    question: str
    answers: list[str]
    images: Callable[[], list[Image.Image]]
    tags: dict[str, str] = field(default_factory=dict)
