"""References: the box of an object that is named."""

import random
from collections.abc import Mapping
from typing import Any

from cal_cli.evaluation.metrics import Boxes, Parts, Question, divide
from cal_cli.toy.families.base import Asked, Turn
from cal_cli.toy.families.objects import Scene, SceneFamily, Thing, draw_things, find_unique


class References(SceneFamily):
    """The box of one of three to five objects, in pixels (overlap of at least half, RefCOCOg)."""

    name = "references"
    share = 0.1
    metric = "references_accuracy"

    def draw(self, random_state: random.Random) -> Scene:
        while True:
            scene = draw_things(random_state, random_state.randint(3, 5))
            if find_unique(scene, "colour", "shape"):
                return scene

    def converse(self, content: Scene, random_state: random.Random, irrelevant: float) -> list[Turn]:
        thing = random_state.choice(find_unique(content, "colour", "shape"))
        return [Turn(write_question(thing), "[" + ",".join(f"{{{edge}}}" for edge in thing.box) + "]")]

    def ask(self, content: Scene, random_state: random.Random, number: int) -> Asked:
        thing = random_state.choice(find_unique(content, "colour", "shape"))
        return Asked(thing.size, write_question(thing), [str(edge) for edge in thing.box])

    def rate(self, question: Question, prediction: str) -> Parts:
        parts = Boxes().score_one(question, prediction)
        return {"score": parts["score"], "overlap": parts["overlap"]}

    def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        return super().compute(sums) | {"references_iou": divide(sums["overlap"], sums["n"])}


def write_question(thing: Thing) -> str:
    """Ask for the box of an object."""
    return f"give the box of the {thing.colour} {thing.shape}."
