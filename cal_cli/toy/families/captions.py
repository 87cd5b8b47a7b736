"""Captions: what a scene shows, in varied ways, among irrelevant language."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np

from cal_cli.evaluation.metrics import Parts, Question, divide
from cal_cli.toy.families.base import Asked, Box, Turn
from cal_cli.toy.families.objects import SYNONYMS, Scene, SceneFamily, Thing, draw_things, find_things
from cal_cli.toy.materials import count_words, mark_words, write_irrelevant

PROMPTS = ("describe the picture.", "what do you see?", "tell me about the picture.")
FORMS = (
    "a {colour} {shape} at the {place}",
    "at the {place} there is a {colour} {shape}",
    "the {shape} at the {place} is {colour}",
    "i see a {colour} {shape} at the {place}",
)


class Captions(SceneFamily):
    """Captions of two or three objects, scored by objects and by whole scenes, in whatever words."""

    name = "captions"
    share = 0.4
    metric = "scene_accuracy"

    def draw(self, random_state: random.Random) -> Scene:
        return draw_things(random_state, random_state.randint(2, 3))

    def converse(self, content: Scene, random_state: random.Random, irrelevant: float) -> list[Turn]:
        return [Turn(random_state.choice(PROMPTS), *write_caption(content, random_state, irrelevant))]

    def ask(self, content: Scene, random_state: random.Random, number: int) -> Asked:
        truth = ". ".join(f"a {thing.colour} {thing.shape} at the {thing.place}" for thing in content)
        return Asked("caption", PROMPTS[number % len(PROMPTS)], [truth])

    def rate(self, question: Question, prediction: str) -> Parts:
        mentions, shown = find_things(prediction), set(find_things(question.answers[0]))
        named = set(mentions)
        return {
            "score": float(named == shown),
            "right": float(len(named & shown)),
            "named": float(len(named)),
            "shown": float(len(shown)),
            "mentions": float(len(mentions)),
            "once": float(named == shown and len(mentions) == len(named)),
        }

    def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        named, mentions = np.asarray(sums["named"]), np.asarray(sums["mentions"])
        return super().compute(sums) | {
            "object_f1": divide(2 * np.asarray(sums["right"]), np.add(named, sums["shown"])),
            "object_precision": np.nan_to_num(divide(sums["right"], named)),
            "object_recall": divide(sums["right"], sums["shown"]),
            "scene_once_accuracy": divide(sums["once"], sums["n"]),
            "object_repetition": np.nan_to_num(divide(mentions - named, mentions)),
        }


def write_caption(scene: Scene, random_state: random.Random, irrelevant: float) -> tuple[str, list[Box]]:
    """Write a caption that names every object of a scene, with correlated words in braces, and return their boxes.

    It has `irrelevant` times as many words of irrelevant phrases as correlated ones, rounded.
    """
    things = list(scene)
    if random_state.random() < 0.5:
        random_state.shuffle(things)
    sentences = [write_thing(thing, random_state) for thing in things]
    boxes = [thing.box for thing, text in zip(things, sentences, strict=True) for _ in range(count_words(text))]
    visual = len(boxes)
    phrases = write_irrelevant(round(irrelevant * visual), random_state)
    for phrase in phrases:
        sentences.insert(random_state.randint(0, len(sentences)), phrase)
    return ". ".join(sentences) + ".", boxes


def write_thing(thing: Thing, random_state: random.Random) -> str:
    """Write a sentence about an object, in one of several forms and with synonyms, without the full stop."""
    words = {
        "colour": mark_words(vary(thing.colour, random_state)),
        "shape": mark_words(vary(thing.shape, random_state)),
        "place": mark_words(thing.place),
    }
    return random_state.choice(FORMS).format(**words)


def vary(word: str, random_state: random.Random) -> str:
    """Return a word, or one that means the same."""
    return random_state.choice([word, *(other for other, meaning in SYNONYMS.items() if meaning == word)])
