"""Scenes of coloured shapes, which captions, questions and references are about, and how a text names them."""

import random
import re
from typing import NamedTuple

from PIL import Image

from cal_cli.toy.families.base import Box, Family
from cal_cli.toy.materials import CELL, COLOURS, COLUMNS, GRID, ROWS, make_canvas

SHAPES = ("square", "disc", "ring", "triangle", "cross")
SIDES = {"small": 8, "large": 12}  # pixels
# no word of the lists in data/noise_words.yaml, where another word is a wrong one
SYNONYMS = {"crimson": "red", "violet": "purple", "dark": "black", "block": "square", "dot": "disc", "hoop": "ring"}
WORDS_OF = {
    "colour": [*COLOURS, *(word for word, meaning in SYNONYMS.items() if meaning in COLOURS)],
    "shape": [*SHAPES, *(word for word, meaning in SYNONYMS.items() if meaning in SHAPES)],
    "row": list(ROWS),
    "column": sorted(COLUMNS, key=len, reverse=True),  # "far left" before "left"
}
PATTERNS = {name: re.compile(rf"\b(?:{'|'.join(words)})(?=\b|s\b)", re.IGNORECASE) for name, words in WORDS_OF.items()}


class Thing(NamedTuple):
    """A coloured shape in a cell; `x` and `y` are its left and upper edge in the image, in pixels."""

    colour: str
    shape: str
    row: str
    column: str
    size: str
    x: int
    y: int

    @property
    def box(self) -> Box:
        """The box around it."""
        side = SIDES[self.size]
        return self.x, self.y, self.x + side, self.y + side

    @property
    def place(self) -> str:
        """Row and column in words."""
        return f"{self.row} {self.column}"


Scene = tuple[Thing, ...]  # in reading order


def draw_things(random_state: random.Random, count: int, colours: int = 6, shapes: int = 5) -> Scene:
    """Draw objects in different cells, of at most so many colours and shapes."""
    palette = random_state.sample(list(COLOURS), colours)
    kinds = random_state.sample(SHAPES, shapes)
    things = []
    for cell in sorted(random_state.sample(range(GRID * GRID), count)):
        row, column = divmod(cell, GRID)
        size = random_state.choice(list(SIDES))
        room = CELL - SIDES[size]  # from edge to edge
        x = column * CELL + room // 2 + random_state.randint(-1, 1)
        y = row * CELL + room // 2 + random_state.randint(-1, 1)
        colour, shape = random_state.choice(palette), random_state.choice(kinds)
        things.append(Thing(colour, shape, ROWS[row], COLUMNS[column], size, x, y))
    return tuple(things)


class SceneFamily(Family):
    """A task about scenes; two that show the same objects, wherever exactly in their cells, are the same."""

    def identify(self, content: Scene) -> tuple:
        return tuple(thing[:4] for thing in content)

    def paint(self, content: Scene, random_state: random.Random) -> Image.Image:
        image, draw = make_canvas(random_state)
        for thing in content:
            (left, top, right, bottom), fill = thing.box, COLOURS[thing.colour]
            edges = left, top, right - 1, bottom - 1  # Pillow includes the last pixel
            if thing.shape == "square":
                draw.rectangle(edges, fill=fill)
            elif thing.shape == "disc":
                draw.ellipse(edges, fill=fill)
            elif thing.shape == "ring":
                draw.ellipse(edges, outline=fill, width=2)
            elif thing.shape == "triangle":
                draw.polygon(((left, bottom - 1), (right - 1, bottom - 1), ((left + right) // 2, top)), fill=fill)
            else:  # a line is wider than its ends
                draw.line((left + 1, top + 1, right - 2, bottom - 2), fill=fill, width=3)
                draw.line((left + 1, bottom - 2, right - 2, top + 1), fill=fill, width=3)
        return image


def find_unique(scene: Scene, *attributes: str) -> list[Thing]:
    """Return the objects that are the only ones with their values of some attributes."""
    values = [tuple(getattr(thing, name) for name in attributes) for thing in scene]
    return [thing for thing, value in zip(scene, values, strict=True) if values.count(value) == 1]


def find_words(text: str, attribute: str) -> list[str]:
    """Return the words of an attribute in a text, in their order, synonyms by their meaning."""
    words = [word.lower() for word in PATTERNS[attribute].findall(text)]
    return [SYNONYMS.get(word, word) for word in words]


def find_things(text: str) -> list[tuple[str, str, str, str]]:
    """Find the objects that a text names: colour, shape, row and column of each, sorted; what is not named is empty.

    Each clause that names a shape is about an object of its own; attributes in a clause without one complete the object
    before it in the same sentence, or else the one after.
    """
    things: list[dict[str, str]] = []
    for sentence in re.split(r"[.;!?\n]+", text):
        current: dict[str, str] | None = None
        loose: dict[str, str] = {}
        for clause in re.split(r",|\band\b|\bwith\b", sentence):
            values = {name: words[0] for name in PATTERNS if (words := find_words(clause, name))}
            if "shape" in values:
                current = loose | values
                loose = {}
                things.append(current)
            elif current is not None:
                current.update({name: value for name, value in values.items() if name not in current})
            else:
                loose |= values
    return sorted(tuple(thing.get(name, "") for name in PATTERNS) for thing in things)  # type: ignore[misc]
