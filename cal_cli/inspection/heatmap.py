"""Figure 2a of the paper: the image and its text, each token coloured by how much it looks at the image."""

import base64
from dataclasses import dataclass
from io import BytesIO

from jinja2 import Environment, PackageLoader
from PIL import Image

from cal_cli.inspection.tokens import Piece

SCALE = 5.0  # as in the paper: full colour at a delta of 5; tokens that the image contradicts (below 0) are blue
SEEN, CONTRADICTED = (230, 97, 1), (50, 100, 220)


@dataclass
class HeatmapSample:
    """One sample of the page."""

    id: str
    images: list[Image.Image]
    pieces: list[Piece]
    is_noise: bool | None


def render_heatmap(samples: list[HeatmapSample], title: str, score: str) -> str:
    """Render the page as HTML that needs no network; text from the data is escaped."""
    environment = Environment(loader=PackageLoader("cal_cli", "inspection"), autoescape=True)
    environment.globals.update(colour=get_colour, data_uri=encode_image)
    template = environment.get_template("heatmap.html.jinja")
    kinds_known = any(piece.kind for sample in samples for piece in sample.pieces)
    return template.render(samples=samples, title=title, score=score, scale=SCALE, kinds_known=kinds_known)


def get_colour(delta: float) -> str:
    """Return the CSS colour of a delta: white at 0, orange towards +5, blue towards -5."""
    strength = min(abs(delta) / SCALE, 1.0)
    red, green, blue = SEEN if delta > 0 else CONTRADICTED
    return f"rgba({red}, {green}, {blue}, {strength:.3f})"


def encode_image(image: Image.Image) -> str:
    """Encode an image as a data URI with a PNG of at most 512 pixels in width and height."""
    image = image.copy()
    image.thumbnail((512, 512))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
