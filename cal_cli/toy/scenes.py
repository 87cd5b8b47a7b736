"""The default world: pictures of three coloured shapes, drawn on the fly, and conversations about them.

A scene is three different objects on a 3 x 3 grid. Its caption names them in reading order; its questions ask
for a colour, a shape, a place and a count. A checksum of the scene decides whether it belongs to the training or to the
test split, so the two splits share no scene, whatever the seed, size or number of runs.
"""

import random
import zlib
from functools import partial

from PIL import Image, ImageDraw

from cal_cli.data.sample import Conversations
from cal_cli.runtime.errors import InputError

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (235, 200, 30),
    "purple": (140, 60, 180),
    "black": (30, 30, 30),
}
SHAPES = ("square", "disc", "ring", "triangle", "cross")
PLACES = tuple(f"{row} {column}" for row in ("top", "middle", "bottom") for column in ("left", "centre", "right"))
NUMBERS = ("none", "one", "two")
OBJECTS = 3
CELL = 16  # pixels; a picture is 3 x 3 cells, 48 x 48 pixels
SPLITS = ("train", "test")
TEST_SHARE = 8  # one scene in eight belongs to the test split
CAPTION_PROMPT = "describe the picture."

Scene = tuple[tuple[str, str, str], ...]  # (colour, shape, place) of each object, in reading order


def get_split(scene: Scene) -> str:
    """Return the split of a scene, from a checksum of the scene: the same on every machine."""
    return "test" if zlib.crc32(repr(scene).encode()) % TEST_SHARE == 0 else "train"


def draw_scene(random_state: random.Random, split: str) -> Scene:
    """Draw a scene of `split` in which at least one object has a unique colour and one a unique shape."""
    while True:
        places = sorted(random_state.sample(range(len(PLACES)), OBJECTS))
        scene = tuple((random_state.choice(list(COLOURS)), random_state.choice(SHAPES), PLACES[p]) for p in places)
        varied = all(len({thing[attribute] for thing in scene}) > 1 for attribute in (0, 1))
        if varied and get_split(scene) == split:
            return scene


def draw_picture(scene: Scene, seed: str) -> Image.Image:
    """Paint a scene as an RGB image of 48 x 48 pixels; `seed` shifts each shape a little and shades the background."""
    random_state = random.Random(seed)
    picture = Image.new("RGB", (3 * CELL, 3 * CELL), (random_state.randint(225, 250),) * 3)
    draw = ImageDraw.Draw(picture)
    for colour, shape, place in scene:
        row, column = divmod(PLACES.index(place), 3)
        x = column * CELL + 3 + random_state.randint(-1, 1)
        y = row * CELL + 3 + random_state.randint(-1, 1)
        end_x, end_y, fill = x + 9, y + 9, COLOURS[colour]
        if shape == "square":
            draw.rectangle((x, y, end_x, end_y), fill=fill)
        elif shape == "disc":
            draw.ellipse((x, y, end_x, end_y), fill=fill)
        elif shape == "ring":
            draw.ellipse((x, y, end_x, end_y), outline=fill, width=2)
        elif shape == "triangle":
            draw.polygon(((x, end_y), (end_x, end_y), (x + 4, y)), fill=fill)
        else:
            draw.line((x, y, end_x, end_y), fill=fill, width=3)
            draw.line((x, end_y, end_x, y), fill=fill, width=3)
    return picture


def write_caption(scene: Scene) -> str:
    """Write one sentence that names every object of the scene in reading order."""
    first, second, third = (f"a {colour} {shape} in the {place}" for colour, shape, place in scene)
    return f"{first}, {second} and {third}."


def write_questions(scene: Scene, random_state: random.Random) -> dict[str, tuple[str, str]]:
    """Write one question and its answer of each kind: colour, shape, place, count."""

    def unique(*attributes: int) -> tuple[str, str, str]:
        seen = [tuple(thing[a] for a in attributes) for thing in scene]
        return random_state.choice([thing for thing, key in zip(scene, seen, strict=True) if seen.count(key) == 1])

    with_shape, with_colour, whole = unique(1), unique(0), unique(0, 1)
    colour = random_state.choice(list(COLOURS))
    if (
        random_state.random() < 0.7
    ):  # mostly ask for a colour that is there: else "none" would be right two times in three
        colour = random_state.choice(scene)[0]
    count = NUMBERS[sum(thing[0] == colour for thing in scene)]
    return {
        "colour": (f"what colour is the {with_shape[1]}?", f"the {with_shape[1]} is {with_shape[0]}."),
        "shape": (f"which shape is {with_colour[0]}?", f"the {with_colour[0]} shape is a {with_colour[1]}."),
        "place": (f"where is the {whole[0]} {whole[1]}?", f"the {whole[0]} {whole[1]} is in the {whole[2]}."),
        "count": (f"how many shapes are {colour}?", f"{colour} shapes: {count}."),
    }


def write_conversation(turns: list[tuple[str, str]], with_image: bool) -> list[dict[str, str]]:
    """Write question and answer pairs as LLaVA conversation turns, with the image before the first question."""
    entries = []
    for number, (question, answer) in enumerate(turns):
        marker = "<image>\n" if with_image and number == 0 else ""
        entries += [{"from": "human", "value": marker + question}, {"from": "gpt", "value": answer}]
    return entries


def make_scenes(
    n: int, seed: int = 0, split: str = "train", text_only_share: float = 0.25, question_share: float = 0.4
) -> Conversations:
    """Make the first `n` samples of a split of the world.

    Sample `i` depends only on (`split`, `seed`, `i`): a larger `n` does not change the first samples.

    Args:
        n: number of samples.
        seed: which stream of samples.
        split: `train` or `test`.
        text_only_share: probability of a sample without an image: a conversation about a scene that is not shown.
            From these a model learns what language alone predicts, which the contrast relies on.
        question_share: probability that a sample asks two of the four questions instead of for a caption.

    Raises InputError if `n` is below 1, a share is outside [0, 1], or `split` is unknown.
    """
    if n < 1:
        raise InputError(f"data.n={n}: at least 1 sample is needed")
    if split not in SPLITS:
        raise InputError(f"data.split={split}: allowed are {' and '.join(SPLITS)}")
    for name, share in (("text_only_share", text_only_share), ("question_share", question_share)):
        if not 0 <= share <= 1:
            raise InputError(f"data.{name}={share}: allowed is a share from 0 to 1")
    entries, shown = [], {}
    for index in range(n):
        identity = f"{split}-{seed}-{index:06d}"
        random_state = random.Random(identity)
        with_image = random_state.random() >= text_only_share
        asks = random_state.random() < question_share
        scene = draw_scene(random_state, split)
        turns = [(CAPTION_PROMPT, write_caption(scene))]
        if asks:
            turns = random_state.sample(list(write_questions(scene, random_state).values()), 2)
        entry: dict = {"id": identity, "conversations": write_conversation(turns, with_image)}
        if with_image:
            entry["image"] = f"{identity}.png"
            shown[entry["image"]] = scene
        entries.append(entry)
    return Conversations(entries, partial(_open, shown))


def _open(shown: dict[str, Scene], name: str) -> Image.Image:
    return draw_picture(shown[name], name)
