"""Charts: bars with labels."""

import random
from typing import NamedTuple

from PIL import Image

from cal_cli.evaluation.metrics import Parts, Question
from cal_cli.evaluation.scoring_rules import relaxed_accuracy
from cal_cli.toy.families.base import BRIEFLY, Asked, Family, Turn
from cal_cli.toy.materials import CELL, COLOURS, FONTS, GRID, draw_glyphs, draw_shift, make_canvas

LABELS = "abcdefghkmps"
STEP = 5  # pixels of height for each unit
TOP = 9  # units


class Bar(NamedTuple):
    """A bar, its label and its height."""

    label: str
    colour: str
    height: int


class Charts(Family):
    """Four bars of different heights: how high is one, which is the highest or lowest (relaxed accuracy, ChartQA)."""

    name = "charts"
    share = 0.1
    metric = "charts_accuracy"

    def draw(self, random_state: random.Random) -> tuple[Bar, ...]:
        heights = random_state.sample(range(1, TOP + 1), GRID)
        labels, colours = random_state.sample(LABELS, GRID), random_state.sample(list(COLOURS), GRID)
        return tuple(map(Bar, labels, colours, heights))

    def paint(self, content: tuple[Bar, ...], random_state: random.Random) -> Image.Image:
        image, draw = make_canvas(random_state)
        font, shift = random_state.choice(FONTS), draw_shift(random_state)
        foot = (GRID - 1) * CELL
        for column, bar in enumerate(content):
            left = column * CELL + 4 + shift[0]
            draw.rectangle((left, foot - STEP * bar.height, left + 7, foot - 1), fill=COLOURS[bar.colour])
            draw_glyphs(draw, bar.label, GRID - 1, column, "black", font, shift)
        draw.line((0, foot, GRID * CELL, foot), fill=COLOURS["black"])
        return image

    def converse(self, content: tuple[Bar, ...], random_state: random.Random, irrelevant: float) -> list[Turn]:
        turns = []
        for kind in random_state.sample(("height", "extreme"), 2):
            question, form, answer = write_question(content, kind, random_state)
            if random_state.random() < 0.5:
                turns.append(Turn(f"{question} {BRIEFLY}", f"{{{answer}}}"))
            else:
                turns.append(Turn(question, form.format(f"{{{answer}}}")))
        return turns

    def ask(self, content: tuple[Bar, ...], random_state: random.Random, number: int) -> Asked:
        kind = ("height", "extreme")[number % 2]
        question, _, answer = write_question(content, kind, random_state)
        return Asked(kind, f"{question} {BRIEFLY}", [answer])

    def rate(self, question: Question, prediction: str) -> Parts:
        return {"score": relaxed_accuracy(prediction.strip(), question.answers)}


def write_question(bars: tuple[Bar, ...], kind: str, random_state: random.Random) -> tuple[str, str, str]:
    """Write a question: the question, a form of a sentence that answers it, and the answer."""
    if kind == "height":
        bar = random_state.choice(bars)
        named = f"bar {bar.label}" if random_state.random() < 0.5 else f"the {bar.colour} bar"
        return f"how high is {named}?", f"{named} is {{}} high.", str(bar.height)
    highest = random_state.random() < 0.5
    bar = (max if highest else min)(bars, key=lambda bar: bar.height)
    which = "highest" if highest else "lowest"
    return f"which bar is the {which}?", f"the {which} is bar {{}}.", bar.label
