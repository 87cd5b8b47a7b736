"""Questions about a scene: colour, shape, place, count and comparison."""

import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from cal_cli.evaluation.metrics import Parts, Question, divide, find_kinds
from cal_cli.toy.families.base import Asked, Turn
from cal_cli.toy.families.objects import SHAPES, Scene, SceneFamily, draw_things, find_unique, find_words
from cal_cli.toy.materials import COLOURS, mark_words

KINDS = ("colour", "shape", "place", "count", "comparison")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
FORMS = {  # of answers; {it} is what the question names
    "colour": ("{answer}.", "it is {answer}.", "the {it} is {answer}.", "i think it is {answer}."),
    "shape": ("a {answer}.", "it is a {answer}.", "the {it} is a {answer}."),
    "place": ("at the {answer}.", "it is at the {answer}.", "the {it} is at the {answer}."),
    "count": ("{answer}.", "there are {answer}.", "i count {answer}."),
    "comparison": ("{answer}.", "{answer}, i think.", "i would say {answer}."),
}


class Questions(SceneFamily):
    """Two questions about three to six objects of few colours and shapes; an answer in any words counts."""

    name = "questions"
    share = 0.2
    metric = "questions_accuracy"

    def draw(self, random_state: random.Random) -> Scene:
        return draw_things(random_state, random_state.randint(3, 6), colours=3, shapes=3)

    def converse(self, content: Scene, random_state: random.Random, irrelevant: float) -> list[Turn]:
        turns = []
        for kind in random_state.sample(KINDS, len(KINDS)):
            if (written := write_question(content, kind, random_state)) is not None:
                question, it, answer = written
                form = random_state.choice(FORMS[kind])
                turns.append(Turn(question, form.format(it=it, answer=mark_words(answer))))
        return turns[:2]

    def ask(self, content: Scene, random_state: random.Random, number: int) -> Asked | None:
        kind = KINDS[number % len(KINDS)]
        written = write_question(content, kind, random_state)
        return None if written is None else Asked(kind, written[0], [written[2]])

    def rate(self, question: Question, prediction: str) -> Parts:
        kind = question.tags["kind"]
        right = float(find_answer(prediction, kind) == find_answer(question.answers[0], kind))
        return {"score": right, f"score/{kind}": right, f"n/{kind}": 1.0}

    def compute(self, sums: Mapping[str, Any]) -> dict[str, Any]:
        kinds = {kind: divide(sums[f"score/{kind}"], sums[f"n/{kind}"]) for kind in find_kinds(sums, "n")}
        return super().compute(sums) | {f"questions_{kind}": value for kind, value in kinds.items()}


def write_question(scene: Scene, kind: str, random_state: random.Random) -> tuple[str, str, str] | None:
    """Write a question of a kind, what it names, and its answer; None if the scene does not allow one."""
    if kind == "count":
        attribute = random_state.choice(("colour", "shape"))
        values = [getattr(thing, attribute) for thing in scene]
        # two times in ten nothing is there; else each number is as likely as there are values that occur so often
        absent = [value for value in (COLOURS if attribute == "colour" else SHAPES) if value not in values]
        by_number: dict[int, list[str]] = {}
        for value, number in Counter(values).items():
            by_number.setdefault(number, []).append(value)
        if random_state.random() < 0.2:
            value, number = random_state.choice(absent), 0
        else:
            number = random_state.choice(sorted(by_number))
            value = random_state.choice(sorted(by_number[number]))
        named = f"{value} things" if attribute == "colour" else f"{value} shapes"
        return f"how many {named} are there?", named, NUMBERS[number]
    if kind == "comparison":
        things = find_unique(scene, "colour", "shape")
        if len({thing.size for thing in things}) < 2:
            return None
        yes = random_state.random() < 0.5
        large = random_state.choice([thing for thing in things if thing.size == "large"])
        small = random_state.choice([thing for thing in things if thing.size == "small"])
        one, other = (large, small) if yes else (small, large)
        it = f"{one.colour} {one.shape}"
        return f"is the {it} larger than the {other.colour} {other.shape}?", it, "yes" if yes else "no"
    known = {"colour": ("shape",), "shape": ("colour",), "place": ("colour", "shape")}[kind]
    things = find_unique(scene, *known)
    if not things:
        return None
    thing = random_state.choice(things)
    if kind == "colour":
        return f"what colour is the {thing.shape}?", thing.shape, thing.colour
    if kind == "shape":
        return f"what shape is the {thing.colour} thing?", f"{thing.colour} thing", thing.shape
    it = f"{thing.colour} {thing.shape}"
    return f"where is the {it}?", it, thing.place


def find_answer(text: str, kind: str) -> list[str]:
    """Find the words of an answer that matter to a kind of question."""
    if kind == "place":
        return [*find_words(text, "row"), *find_words(text, "column")]
    if kind in ("colour", "shape"):
        return find_words(text, kind)
    words = text.lower().replace(".", " ").replace(",", " ").split()
    allowed = NUMBERS if kind == "count" else ("yes", "no")
    return [word for word in words if word in allowed]
