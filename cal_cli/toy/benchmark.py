"""The default world as a benchmark: a caption and four questions about scenes that no training run has seen."""

import random
import re
from functools import partial
from typing import Any

from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.metrics import Metric, Parts, Sums, divide, find_kinds
from cal_cli.evaluation.questions import Question
from cal_cli.evaluation.scoring_rules import exact_match
from cal_cli.runtime.errors import InputError
from cal_cli.toy.scenes import (
    CAPTION_PROMPT,
    COLOURS,
    PLACES,
    SHAPES,
    draw_picture,
    draw_scene,
    write_caption,
    write_questions,
)


def make_benchmark(
    n: int = 512, seed: int = 0, max_new_tokens: int = 40, headline: list[str] | None = None, version: int = 1
) -> Benchmark:
    """Ask about scenes of the test split: for a caption, and one question each about colour, shape, place and count.

    `conf/benchmark/scenes.yaml` documents the arguments.

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
        turns = {"caption": (CAPTION_PROMPT, write_caption(scene)), **write_questions(scene, random_state)}
        asked += [
            Question(f"{picture_id}-{kind}", picture_id, f"<image>\n{question}", [answer], picture, {"kind": kind})
            for kind, (question, answer) in turns.items()
        ]
    return Benchmark(
        split="test",
        questions=asked,
        metric=Scenes(),
        metric_config={"_target_": "cal_cli.toy.benchmark.Scenes"},
        max_new_tokens=max_new_tokens,
        source={"path": "cal_cli.toy.scenes", "seed": seed},
    )


class Scenes(Metric):
    """Captions with every attribute right (`scene_accuracy`), and questions answered word for word (`exact_match`)."""

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        kind = question.tags["kind"]
        if kind == "caption":
            right = match_scene(prediction, question.answers)
            return {"score": right, "scenes": right, "captions": 1.0}
        right = exact_match(prediction, question.answers)
        parts = {"score": right, "answers": right, "questions": 1.0}
        return parts | {f"answers/{kind}": right, f"questions/{kind}": 1.0}

    def compute(self, sums: Sums) -> dict[str, Any]:
        values = {"scene_accuracy": divide(sums["scenes"], sums["captions"])}
        if "questions" in sums:
            values["exact_match"] = divide(sums["answers"], sums["questions"])
        for kind in find_kinds(sums, "questions"):
            values[f"exact_match_{kind}"] = divide(sums[f"answers/{kind}"], sums[f"questions/{kind}"])
        return values


def match_scene(prediction: str, answers: list[str]) -> float:
    """Return 1 if a caption names exactly the objects of the scene, each with its colour, shape and place; else 0."""
    return float(any(find_objects(prediction) == find_objects(answer) for answer in answers))


def find_objects(caption: str) -> list[tuple[str, ...]]:
    """Find the (colour, shape, place) triples that a caption names, sorted."""
    pattern = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) in the ({'|'.join(PLACES)})"
    return sorted(re.findall(pattern, caption.lower()))
