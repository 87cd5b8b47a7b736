"""The default world as a benchmark: a caption and four questions about each of some scenes no training run has seen."""

import random
import re
from functools import partial
from typing import Any

from cal_cli.data.scenes import CAPTION_PROMPT, COLOURS, PLACES, SHAPES, caption, draw_picture, draw_scene, questions
from cal_cli.errors import InputError
from cal_cli.evaluation.answers import exact_match
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.metrics import Metric, Parts, Sums, kinds_in, share
from cal_cli.evaluation.questions import Question


def scenes_benchmark(
    n: int = 512, seed: int = 0, max_new_tokens: int = 40, headline: list[str] | None = None, version: int = 1
) -> Benchmark:
    """Scenes of the test split: a caption and one question each about colour, shape, place and count.

    Args:
        n: scenes.
        seed: which.
        max_new_tokens: after which an answer is cut.
        headline: the values that stand for the benchmark; for `cal report`.
        version: of the benchmark.

    Raises:
        InputError: `n` or `max_new_tokens` is below 1.
    """
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"benchmark.{name}={value}: must be at least 1")
    asked = []
    for index in range(n):
        picture_id = f"test-{seed}-{index:06d}"
        random_state = random.Random(f"benchmark-{picture_id}")
        scene = draw_scene(random_state, "test")
        picture = partial(lambda *one: [draw_picture(*one)], scene, picture_id)
        turns = {"caption": (CAPTION_PROMPT, caption(scene)), **questions(scene, random_state)}
        asked += [
            Question(f"{picture_id}-{kind}", picture_id, f"<image>\n{question}", [answer], picture, {"kind": kind})
            for kind, (question, answer) in turns.items()
        ]
    return Benchmark("test", asked, Scenes(), max_new_tokens, {"path": "cal_cli.data.scenes", "seed": seed})


class Scenes(Metric):
    """Captions with every attribute right (`scene_accuracy`), and questions answered word for word (`exact_match`)."""

    top = 1.0

    def part(self, question: Question, prediction: str) -> Parts:
        kind = question.tags["kind"]
        if kind == "caption":
            right = scene_match(prediction, question.answers)
            return {"score": right, "scenes": right, "captions": 1.0}
        right = exact_match(prediction, question.answers)
        parts = {"score": right, "answers": right, "questions": 1.0}
        return parts | {f"answers/{kind}": right, f"questions/{kind}": 1.0}

    def values(self, sums: Sums) -> dict[str, Any]:
        values = {"scene_accuracy": share(sums["scenes"], sums["captions"])}
        if "questions" in sums:
            values["exact_match"] = share(sums["answers"], sums["questions"])
        for kind in kinds_in(sums, "questions"):
            values[f"exact_match_{kind}"] = share(sums[f"answers/{kind}"], sums[f"questions/{kind}"])
        return values


def scene_match(prediction: str, answers: list[str]) -> float:
    """1 if a caption names exactly the objects of the scene, each with its colour, shape and place; else 0."""
    return float(any(objects_in(prediction) == objects_in(answer) for answer in answers))


def objects_in(caption: str) -> list[tuple[str, ...]]:
    """The (colour, shape, place) triples that a caption names, sorted."""
    pattern = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) in the ({'|'.join(PLACES)})"
    return sorted(re.findall(pattern, caption.lower()))
