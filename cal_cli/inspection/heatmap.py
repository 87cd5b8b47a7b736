"""Figure 2a of the paper: the image and its text, each token coloured by how much it looks at the image."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

from jinja2 import Environment, PackageLoader
from PIL import Image

from cal_cli.inspection.tokens import Piece, Token
from cal_cli.inspection.words import RankedWord

SCALE = 5.0  # as in the paper: full colour at a delta of 5; tokens that the image contradicts (below 0) are blue
SEEN, CONTRADICTED = (230, 97, 1), (50, 100, 220)


@dataclass
class HeatmapSample:
    """One sample of the page."""

    id: str
    images: list[Image.Image]
    texts: dict[str, list[Piece]]  # its text under each checkpoint, by the checkpoint's name
    is_noise: bool | None


def render_heatmap(samples: list[HeatmapSample], title: str, words: Sequence[Sequence[RankedWord]] = ((), ())) -> str:
    """Render the page as HTML that needs no network; text from the data is escaped.

    `words` are the most and the least visual ones, see `rank_words`.
    """
    environment = Environment(loader=PackageLoader("cal_cli", "inspection"), autoescape=True)
    environment.globals.update(
        colour=get_colour, grade=grade, data_uri=encode_image, describe=describe_token, grade_weight=grade_weight
    )
    template = environment.get_template("heatmap.html.jinja")
    texts = [pieces for sample in samples for pieces in sample.texts.values()]
    kinds_known = any(piece.token and piece.token.kind for pieces in texts for piece in pieces)
    return template.render(samples=samples, title=title, words=words, scale=SCALE, kinds_known=kinds_known)


def grade(delta: float) -> float:
    """Return the strength of a delta's colour, from -1 to 1."""
    return max(-1.0, min(delta / SCALE, 1.0))


def grade_weight(weight: float) -> float:
    """Return the strength of a weight's colour: -1 for a weight of 0, 0 for 1, and 1 for 5 or more."""
    return min((weight - 1) / (SCALE - 1), 1.0) if weight > 1 else weight - 1


def get_colour(strength: float) -> str:
    """Return the CSS colour of a strength from -1 to 1: orange above 0, blue below, none at 0."""
    red, green, blue = SEEN if strength > 0 else CONTRADICTED
    return f"rgba({red}, {green}, {blue}, {abs(strength):.3f})"


def describe_token(token: Token) -> str:
    """Describe a token in a line: its probabilities, deltas, weight and kind."""
    shown, hidden = (math.exp(logprob) for logprob in token.logprob)
    kind = f", {token.kind}" if token.kind else ""
    return (
        f"probability {shown:.3g} with the image, {hidden:.3g} without: log-probability {token.logprob_delta:+.2f}, "
        f"raw logit {token.logit_delta:+.2f}, weight {token.weight:.2f}{kind}"
    )


def encode_image(image: Image.Image) -> str:
    """Encode an image as a data URI with a PNG of at most 512 pixels in width and height."""
    image = image.copy()
    image.thumbnail((512, 512))
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
