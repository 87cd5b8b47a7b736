"""The paper of the default world: pictures of 64 x 64 pixels, in 4 x 4 cells, with colours and real fonts."""

import random
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

CELL = 16  # pixels
GRID = 4  # cells in a row, and in a column
PICTURE = GRID * CELL
COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (225, 185, 20),
    "purple": (140, 60, 180),
    "black": (30, 30, 30),
}
ROWS = ("top", "upper", "lower", "bottom")
COLUMNS = ("far left", "left", "right", "far right")
FONTS = ("DejaVuSans-Bold", "DejaVuSerif-Bold", "DejaVuSansMono-Bold")  # matplotlib carries them
FONT_SIZE = 15  # pixels


def make_canvas(random_state: random.Random) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Make an empty RGB picture of a light grey, and a pen for it."""
    picture = Image.new("RGB", (PICTURE, PICTURE), (random_state.randint(225, 250),) * 3)
    return picture, ImageDraw.Draw(picture)


def draw_glyphs(
    draw: ImageDraw.ImageDraw, text: str, row: int, column: int, colour: str, font: str, shift: tuple[int, int]
) -> None:
    """Draw a text with one glyph in the middle of each cell, from a cell to the right.

    `shift` moves the whole text, in pixels to the right and down.
    """
    for place, glyph in enumerate(text, column):
        middle = place * CELL + CELL // 2 + shift[0], row * CELL + CELL // 2 + shift[1]
        draw.text(middle, glyph, COLOURS[colour], load_font(font), anchor="mm")


def photograph(picture: Image.Image, grain: float, deviation: float, random_state: random.Random) -> Image.Image:
    """Return a picture as a poor camera sees it: faded towards the paper, with normal noise in each channel.

    The contrast is drawn from 1 - 0.8 x `grain` to 1, and the standard deviation of the noise from 0 to `grain` x
    `deviation` (of 255 levels); with a `grain` of 0 the picture stays as it is.
    """
    if grain == 0:
        return picture
    generator = np.random.default_rng(random_state.getrandbits(64))
    contrast, drawn = random_state.uniform(1 - 0.8 * grain, 1), random_state.uniform(0, grain * deviation)
    pixels = np.asarray(picture, dtype=np.float64)
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
