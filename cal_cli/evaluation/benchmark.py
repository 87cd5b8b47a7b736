"""Benchmarks: questions with answers, and how an answer is scored."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from cal_cli.data.scenes import CAPTION_PROMPT, caption, draw_picture, draw_scene, questions
from cal_cli.errors import InputError
from cal_cli.evaluation.metrics import exact_match, grouped_mean, proportion, scene_match


@dataclass
class Question:
    """One question of a benchmark; `kind` says how it is scored and `picture` which questions belong together."""

    id: str
    picture: str
    kind: str
    image: Image.Image
    question: str  # with `<image>` where the picture belongs
    answers: list[str]


@dataclass
class Benchmark:
    """Questions, the score of a prediction, and the metrics over all scores."""

    name: str
    split: str
    n: int  # pictures
    questions: list[Question]
    max_new_tokens: int
    score: Callable[[Question, str], float]
    metrics: Callable[[list[Question], list[float]], dict[str, dict]]


def scenes_benchmark(n: int = 512, seed: int = 0, max_new_tokens: int = 40) -> Benchmark:
    """Scenes of the test split: a caption and one question each about colour, shape, place and count.

    Metrics: `scene_accuracy`, the share of captions with every attribute right; `exact_match`, the share of
    questions answered word for word, over all kinds and for each.

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
        picture = draw_picture(scene, picture_id)
        turns = {"caption": (CAPTION_PROMPT, caption(scene)), **questions(scene, random_state)}
        asked += [
            Question(f"{picture_id}-{kind}", picture_id, kind, picture, f"<image>\n{question}", [answer])
            for kind, (question, answer) in turns.items()
        ]
    return Benchmark("scenes", "test", n, asked, max_new_tokens, score_scene_question, scene_metrics)


def score_scene_question(question: Question, prediction: str) -> float:
    """Captions by their objects, questions word for word."""
    match = scene_match if question.kind == "caption" else exact_match
    return match(prediction, question.answers)


def scene_metrics(asked: list[Question], scores: list[float]) -> dict[str, dict]:
    """Scene accuracy, exact match over all questions, and exact match of each kind of question."""
    by_kind: dict[str, list[float]] = {}
    for question, score in zip(asked, scores, strict=True):
        by_kind.setdefault(question.kind, []).append(score)
    captions = by_kind.pop("caption")
    pairs = [(s, q.picture) for q, s in zip(asked, scores, strict=True) if q.kind != "caption"]
    metrics = {
        "scene_accuracy": proportion(captions),
        "exact_match": grouped_mean([score for score, _ in pairs], [picture for _, picture in pairs]),
    }
    return metrics | {f"exact_match_{kind}": proportion(values) for kind, values in by_kind.items()}
