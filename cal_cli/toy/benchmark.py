"""The default world as a benchmark: questions of each family about pictures that no training run has seen."""

import random
from functools import partial
from typing import Any

from PIL import Image

from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.metrics import Metric, Parts, Sums
from cal_cli.evaluation.questions import Question
from cal_cli.runtime.errors import InputError
from cal_cli.toy.families import FAMILIES
from cal_cli.toy.scenes import check_grain, find_families, paint


def make_benchmark(
    n: int = 512,
    seed: int = 0,
    families: list[str] | None = None,
    grain: float = 1.0,
    max_new_tokens: int = 128,
    headline: list[str] | None = None,
    version: int = 2,
) -> Benchmark:
    """Ask one question about each of `n` pictures of each family, all of the test split.

    `conf/benchmark/scenes.yaml` documents the arguments.

    Raises:
        InputError: `n` or `max_new_tokens` is below 1, a family is unknown, or the grain is out of range.
    """
    for name, value in (("n", n), ("max_new_tokens", max_new_tokens)):
        if value < 1:
            raise InputError(f"benchmark.{name}={value}: must be at least 1")
    check_grain(grain, "benchmark.grain")
    chosen = find_families(families, "benchmark.families")
    return Benchmark(
        split="test",
        questions=[ask(name, seed, number, grain) for name in chosen for number in range(n)],
        metric=Scenes(),
        metric_config={"_target_": "cal_cli.toy.benchmark.Scenes"},
        max_new_tokens=max_new_tokens,
        source={"path": "cal_cli.toy.scenes", "seed": seed},
    )


def ask(name: str, seed: int, number: int, grain: float) -> Question:
    """Make question `number` of a family; pictures that do not allow it are passed over."""
    family, identity = FAMILIES[name], f"test-{seed}-{name}-{number:06d}"
    random_state = random.Random(f"benchmark-{identity}")
    asked = None
    while asked is None:
        content = family.draw_of_split(random_state, "test")
        asked = family.ask(content, random_state, number)
    tags = {"family": name, "kind": asked.kind}
    pictures = partial(_open, name, content, grain, identity)
    return Question(f"{identity}-{asked.kind}", identity, f"<image>\n{asked.question}", asked.answers, pictures, tags)


def _open(family: str, content: Any, grain: float, identity: str) -> list[Image.Image]:
    return [paint(family, content, grain, identity)]


class Scenes(Metric):
    """The headline number of each family, and its finer ones."""

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        family = FAMILIES[question.tags["family"]]
        parts = family.rate(question, prediction)
        own = {f"{family.name}:{name}": value for name, value in ({"n": 1.0} | parts).items()}
        return {"score": parts["score"]} | own

    def compute(self, sums: Sums) -> dict[str, Any]:
        values: dict[str, Any] = {}
        more: dict[str, Any] = {}
        for family in FAMILIES.values():
            prefix = f"{family.name}:"
            own = {name.removeprefix(prefix): value for name, value in sums.items() if name.startswith(prefix)}
            if own:
                computed = family.compute(own)
                values[family.metric] = computed.pop(family.metric)
                more |= computed
        return values | more
