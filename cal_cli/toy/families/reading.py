"""Reading: words and numbers in real fonts, among distractors."""

import random
from typing import NamedTuple

from PIL import Image

from cal_cli.evaluation.metrics import Parts, Question
from cal_cli.evaluation.scoring_rules import contained
from cal_cli.toy.families.base import BRIEFLY, Asked, Family, Turn
from cal_cli.toy.materials import COLOURS, FONTS, GRID, ROWS, draw_glyphs, draw_shift, make_canvas

SHORT_WORDS = """
    cat dog sun hat bus cup map pen key box fan jam log net owl pie rug van wax zip
    bird fish milk rain book tree lamp door king shoe moon star coin drum leaf nest
"""
WORDS = SHORT_WORDS.split()
FORMS = ("it says {{{}}}.", "the text is {{{}}}.", "i read {{{}}}.")


class Line(NamedTuple):
    """A text in a row; its colour is no other's."""

    text: str
    colour: str
    row: int
    column: int


class Reading(Family):
    """A question for one of two or three lines, by its colour or its row; an answer that contains the text counts."""

    name = "reading"
    share = 0.1
    metric = "reading_accuracy"

    def draw(self, random_state: random.Random) -> tuple[Line, ...]:
        count = random_state.randint(2, 3)
        rows = sorted(random_state.sample(range(GRID), count))
        lines = []
        for row, colour in zip(rows, random_state.sample(list(COLOURS), count), strict=True):
            word = random_state.choice(WORDS)
            number = str(random_state.randint(10, 999))
            text = word if random_state.random() < 0.5 else number
            lines.append(Line(text, colour, row, random_state.randint(0, GRID - len(text))))
        return tuple(lines)

    def paint(self, content: tuple[Line, ...], random_state: random.Random) -> Image.Image:
        image, draw = make_canvas(random_state)
        font = random_state.choice(FONTS)
        for line in content:
            draw_glyphs(draw, line.text, line.row, line.column, line.colour, font, draw_shift(random_state))
        return image

    def converse(self, content: tuple[Line, ...], random_state: random.Random, irrelevant: float) -> list[Turn]:
        turns = []
        for line in random_state.sample(content, 2):
            question, answer = write_question(line, random_state), random_state.choice(FORMS).format(line.text)
            if random_state.random() < 0.5:
                question, answer = f"{question} {BRIEFLY}", f"{{{line.text}}}"
            turns.append(Turn(question, answer))
        return turns

    def ask(self, content: tuple[Line, ...], random_state: random.Random, number: int) -> Asked:
        line = random_state.choice(content)
        kind = "number" if line.text.isdigit() else "word"
        return Asked(kind, f"{write_question(line, random_state)} {BRIEFLY}", [line.text])

    def rate(self, question: Question, prediction: str) -> Parts:
        return {"score": contained(prediction, question.answers)}


def write_question(line: Line, random_state: random.Random) -> str:
    """Ask for a line by its colour or its row."""
    if random_state.random() < 0.5:
        return f"what does the {line.colour} text say?"
    return f"what is written in the {ROWS[line.row]} row?"
