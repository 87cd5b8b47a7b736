"""Documents: labelled fields."""

import random
from typing import NamedTuple

from PIL import Image

from cal_cli.evaluation.metrics import Parts, Question
from cal_cli.evaluation.scoring_rules import anls
from cal_cli.toy.families.base import BRIEFLY, Asked, Family, Turn
from cal_cli.toy.materials import FONTS, draw_glyphs, draw_shift, make_canvas

NAMES = ("ana", "bob", "eva", "ian", "kim", "leo", "mia", "ned", "pam", "ray", "sam", "tom", "una", "vic", "wes", "zoe")
FIELDS = ("name", "date", "total", "code")  # an image has their first letters
CODES = "acdefhkmprtx"
FORMS = ("the {} is {{{}}}.", "it is {{{}}}.", "the {} field has {{{}}}.")


class Row(NamedTuple):
    """A field and its value."""

    field: str
    value: str


class Documents(Family):
    """A form with three or four fields, each a letter and a value: what is the value? (ANLS, DocVQA)."""

    name = "documents"
    share = 0.1
    metric = "documents_anls"
    deviation = 160.0  # at 40, the base reads 99 % of the values

    def draw(self, random_state: random.Random) -> tuple[Row, ...]:
        fields = random_state.sample(FIELDS, random_state.randint(3, 4))
        return tuple(Row(field, draw_value(field, random_state)) for field in fields)

    def paint(self, content: tuple[Row, ...], random_state: random.Random) -> Image.Image:
        image, draw = make_canvas(random_state)
        font = random_state.choice(FONTS)
        for number, row in enumerate(content):
            shift = draw_shift(random_state)
            draw_glyphs(draw, row.field[0].upper(), number, 0, "blue", font, shift)
            draw_glyphs(draw, row.value, number, 1, "black", font, shift)
        return image

    def converse(self, content: tuple[Row, ...], random_state: random.Random, irrelevant: float) -> list[Turn]:
        turns = []
        for row in random_state.sample(content, 2):
            question = f"what is the {row.field}?"
            if random_state.random() < 0.5:
                turns.append(Turn(f"{question} {BRIEFLY}", f"{{{row.value}}}"))
            else:
                form = random_state.choice(FORMS)
                named = (row.field,) if form.count("{}") == 2 else ()
                turns.append(Turn(question, form.format(*named, row.value)))
        return turns

    def ask(self, content: tuple[Row, ...], random_state: random.Random, number: int) -> Asked:
        row = random_state.choice(content)
        return Asked(row.field, f"what is the {row.field}? {BRIEFLY}", [row.value])

    def rate(self, question: Question, prediction: str) -> Parts:
        return {"score": anls(prediction, question.answers)}


def draw_value(field: str, random_state: random.Random) -> str:
    """Draw the value of a field, of at most three characters."""
    if field == "name":
        return random_state.choice(NAMES)
    if field == "date":
        return f"{random_state.randint(1, 9)}/{random_state.randint(1, 9)}"
    if field == "total":
        return str(random_state.randint(10, 999))
    return f"{random_state.choice(CODES)}{random_state.randint(10, 99)}"
