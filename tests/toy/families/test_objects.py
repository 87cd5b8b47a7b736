"""Scenes of objects: what the pixels show, and what a text names, in whatever words."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.toy.families import FAMILIES
from cal_cli.toy.families.captions import Captions, write_caption
from cal_cli.toy.families.objects import SIDES, draw_things, find_things, find_unique
from cal_cli.toy.materials import COLOURS, COLUMNS, ROWS, unmark


def objects_painted(image):
    """The (colour, row, column) that a picture shows, read from its pixels."""
    found = set()
    for number in range(16):
        row, column = divmod(number, 4)
        cell = image.crop((column * 16, row * 16, column * 16 + 16, row * 16 + 16))
        colours = {pixel for _, pixel in cell.getcolors()}
        found |= {(name, ROWS[row], COLUMNS[column]) for name, value in COLOURS.items() if value in colours}
    return found


@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 4.0]))
def test_captions_tell_what_the_pixels_show(seed, irrelevant):
    state = random.Random(seed)
    scene = Captions().draw(state)
    text, _ = unmark(write_caption(scene, state, irrelevant)[0])
    named = find_things(text)
    assert {(colour, row, column) for colour, _, row, column in named} == objects_painted(
        FAMILIES["captions"].paint(scene, state)
    )
    assert named == sorted(tuple(thing[:4]) for thing in scene)


@given(st.integers(0, 10**6))
def test_boxes_enclose_what_is_painted_and_no_more(seed):
    state = random.Random(seed)
    (thing,) = draw_things(state, 1)
    picture = FAMILIES["captions"].paint((thing,), state)
    fill = COLOURS[thing.colour]
    painted = [(x, y) for x in range(64) for y in range(64) if picture.getpixel((x, y)) == fill]
    columns, rows = zip(*painted, strict=True)
    left, top, right, bottom = thing.box
    assert left <= min(columns) and top <= min(rows) and max(columns) < right and max(rows) < bottom
    assert right - left == bottom - top == SIDES[thing.size]
    assert max(columns) - min(columns) >= SIDES[thing.size] - 2


@pytest.mark.parametrize(
    "text",
    [
        "a red ring at the top far left. a blue disc at the lower right.",
        "There is a BLUE dot at the lower right, and a crimson hoop at the top far left",
        "at the lower right there is a blue disc; the ring at the top far left is red",
        "it feels calm. a red ring, at the top far left. once, in april. lower right: a blue disc.",
        "I see two things: a ring in the top far left with red paint. The disc on the lower right is blue!",
    ],
)
def test_things_are_found_in_any_wording(text):
    assert find_things(text) == [("blue", "disc", "lower", "right"), ("red", "ring", "top", "far left")]


def test_what_is_not_named_is_empty_and_part_of_a_word_is_no_word():
    assert find_things("some rings. a redder disc on the left") == [("", "disc", "", "left"), ("", "ring", "", "")]
    assert find_things("nothing here") == []


def test_unique_things():
    scene = draw_things(random.Random(0), 6, colours=2, shapes=2)
    for thing in find_unique(scene, "colour", "shape"):
        assert sum((other.colour, other.shape) == (thing.colour, thing.shape) for other in scene) == 1
