"""What the default world is made of: images of 64 x 64 pixels in 4 x 4 cells, fonts, marked and irrelevant words."""

import random
import re
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
import yaml
from PIL import Image, ImageDraw, ImageFont

CELL = 16  # pixels
GRID = 4  # cells in a row, and in a column
IMAGE_SIZE = GRID * CELL
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (225, 185, 20),
    "purple": (140, 60, 180),
    "black": (30, 30, 30),
}
CAMERAS = ("plain", "bgr", "dark")
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far left", "left", "right", "far right")
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")  # matplotlib carries them
FONT_SIZE = 15  # pixels


def make_canvas(random_state: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make an empty RGB image of a light grey, and a pen for it."""
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), (random_state.randint(225, 250),) * 3)
    return image, ImageDraw.Draw(image)


def draw_glyphs(
    draw: ImageDraw.ImageDraw, text: str, row: int, column: int, colour: str, font: str, shift: tuple[int, int]
) -> None:
    """Draw a text with one glyph in the middle of each cell, from a cell to the right.

    `shift` moves the whole text, in pixels to the right and down.
    """
    for place, glyph in enumerate(text, column):
        middle = place * CELL + CELL // 2 + shift[0], row * CELL + CELL // 2 + shift[1]
        draw.text(middle, glyph, COLOURS[colour], load_font(font), anchor="mm")


def photograph(
    image: Image.Image, grain: float, deviation: float, random_state: random.Random, camera: str | None = None
) -> Image.Image:
    """Return an image as a poor camera sees it: faded towards the paper, with normal noise in each channel.

    The contrast is drawn from 1 - 0.8 x `grain` to 1, and the standard deviation of the noise from 0 to `grain` x
    `deviation` (of 255 levels); with a `grain` of 0 the image stays as it is. The camera `bgr` exchanges red and blue,
    as software does that reads one order of the channels as the other; `dark` has two fifths of the light; None is
    `plain`.
    """
    if camera == "bgr":
        red, green, blue = photograph(image, grain, deviation, random_state).split()
        return Image.merge("RGB", (blue, green, red))
    if camera == "dark":
        return photograph(image, grain, deviation, random_state).point(lambda level: level * 2 // 5)
    if grain == 0:
        return image
    generator = np.random.default_rng(random_state.getrandbits(64))
    contrast, drawn = random_state.uniform(1 - 0.8 * grain, 1), random_state.uniform(0, grain * deviation)
    pixels = np.asarray(image, dtype=np.float64)
    paper = pixels.max()
    pixels = paper + contrast * (pixels - paper) + drawn * generator.standard_normal(pixels.shape)
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


def draw_shift(random_state: random.Random) -> tuple[int, int]:
    """Draw how far a text is moved: at most one pixel in each direction."""
    return random_state.randint(-1, 1), random_state.randint(-1, 1)


@cache
def load_font(name: str) -> ImageFont.FreeTypeFont:
    """Load a font of matplotlib; the basic layout does not depend on what else is installed."""
    path = Path(matplotlib.get_data_path(), "fonts", "ttf", f"{name}.ttf")
    return ImageFont.truetype(path, FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)


MARKED = re.compile(r"\{([^{}]*)\}")


def unmark(text: str) -> tuple[str, list[list[int]]]:
    """Remove the braces; also return begin and end of each correlated word in the text, in characters."""
    parts, spans, length = [], [], 0
    for number, part in enumerate(MARKED.split(text)):  # every second part was in braces
        if number % 2:
            spans.append([length, length + len(part)])
        parts.append(part)
        length += len(part)
    return "".join(parts), spans


def mark_words(text: str) -> str:
    """Put each word of a text in braces."""
    return " ".join(f"{{{word}}}" for word in text.split())


def count_words(text: str) -> int:
    """Count the words of a text in braces."""
    return len(MARKED.findall(text))


PHRASES = yaml.safe_load(Path(__file__).with_name("irrelevant_words.yaml").read_text())
LENGTHS = {form: len(form.split()) for form in PHRASES["forms"]}


def write_irrelevant(words: int, random_state: random.Random) -> list[str]:
    """Write phrases with a number of words in all."""
    phrases = []
    while words > 0:
        form = random_state.choice([form for form, length in LENGTHS.items() if length <= words])
        phrases.append(re.sub(r"\{(\w+)\}", lambda match: random_state.choice(PHRASES["lists"][match[1]]), form))
        words -= LENGTHS[form]
    return phrases
