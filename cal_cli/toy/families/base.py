"""What a task of images is: how its images are drawn, what is said of them, and how answers are scored."""

import random
import zlib
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

from PIL import Image

from cal_cli.evaluation.metrics import Parts, Question, divide

SPLITS = ("train", "test")
TEST_SHARE = 8  # one content in eight belongs to the test split
BRIEFLY = "answer briefly."


Box = tuple[int, int, int, int]  # left, upper, right and lower edge in pixels; the last two are outside


class Turn(NamedTuple):
    """A question and its answer, with the answer's visually correlated words in braces."""

    question: str
    answer: str
    boxes: Sequence[Box] = ()  # of what each of these words names; empty if that is not known


class Asked(NamedTuple):
    """A question of the test split, its kind, and the answers that are right."""

    kind: str
    question: str
    answers: list[str]


class Family(ABC):
    """One kind of image, with the conversations about it.

    Attributes:
        name: of the task.
        share: of the samples, relative to the other tasks.
        metric: name of its headline number.
        deviation: of the noise in its images, at most, in levels of 255, at a grain of 1.
    """

    name: ClassVar[str]
    share: ClassVar[float]
    metric: ClassVar[str]
    deviation: ClassVar[float] = 40.0

    @abstractmethod
    def draw(self, random_state: random.Random) -> Any:
        """Draw what an image shows."""

    @abstractmethod
    def paint(self, content: Any, random_state: random.Random) -> Image.Image:
        """Paint what was drawn."""

    @abstractmethod
    def converse(self, content: Any, random_state: random.Random, irrelevant: float) -> list[Turn]:
        """Write a conversation for training; `irrelevant` is the number of irrelevant words for each correlated one."""

    @abstractmethod
    def ask(self, content: Any, random_state: random.Random, number: int) -> Asked | None:
        """Write question `number` of a test, or None if the image does not allow it."""

    def identify(self, content: Any) -> Hashable:
        """Return what two images must not share if one is for training and one for tests."""
        return content

    @abstractmethod
    def rate(self, question: Question, prediction: str) -> Parts:
        """Return an answer's `score` from 0 to 1, and what else adds up over answers."""

    def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        """Compute the task's values from sums over its answers; `n` counts them."""
        return {self.metric: divide(sums["score"], sums["n"])}

    def get_split(self, content: Any) -> str:
        """Return the split of an image, from a checksum of what it shows: the same on every machine."""
        identity = repr(self.identify(content)).encode()
        return "test" if zlib.crc32(identity) % TEST_SHARE == 0 else "train"

    def draw_of_split(self, random_state: random.Random, split: str) -> Any:
        """Draw what an image of a split shows."""
        while True:
            content = self.draw(random_state)
            if self.get_split(content) == split:
                return content
