"""A page on which a token of a text shows where in the picture it looks, for one checkpoint or two side by side."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from cal_cli.inspection.pictures import enlarge

SUMMED, RELEVANCY = "attention, sum over layers", "relevancy"


@dataclass
class PictureMaps:
    """Maps of every token over one picture.

    Attributes:
        picture: as the image tokens see it.
        maps: float [tokens, kinds, rows, columns], in the order of `list_kinds`.
    """

    picture: Image.Image
    maps: np.ndarray


@dataclass
class AttentionSample:
    """A sample of the page.

    Attributes:
        id: of the sample.
        pieces: the text of each token of the conversation, and the number of the map of a supervised one, else None.
        words: the number of the word that each piece belongs to, see `number_words`.
        checkpoints: for each checkpoint its name and its pictures.
    """

    id: str
    pieces: list[tuple[str, int | None]]
    words: list[int]
    checkpoints: list[tuple[str, list[PictureMaps]]]


def list_kinds(layers: int) -> list[str]:
    """List the kinds of maps: attention summed over layers, relevancy, and the attention of each layer."""
    return [SUMMED, RELEVANCY, *(f"attention, layer {layer}" for layer in range(1, layers + 1))]


def render_attention(samples: Sequence[AttentionSample], kinds: Sequence[str], title: str, note: str) -> str:
    """Render the page as HTML that needs no network; text from the data is escaped.

    Args:
        samples: of the page.
        kinds: names of the maps.
        title: of the page.
        note: about attention sinks.
    """
    environment = Environment(loader=PackageLoader("cal_cli", "inspection"), autoescape=True)
    environment.globals.update(data_uri=encode_picture, pack=pack_maps)
    template = environment.get_template("attention.html.jinja")
    return template.render(samples=samples, kinds=kinds, title=title, note=note)


def pack_maps(maps: np.ndarray) -> dict[str, object]:
    """Pack maps for the page: a byte for each cell, relative to the largest cell of its map, and that cell's value."""
    tokens, kinds, rows, columns = maps.shape
    largest = maps.max(axis=(2, 3), initial=0.0)
    levels = (maps / np.maximum(largest, 1e-12)[..., None, None] * 255).round().astype(np.uint8)
    return {
        "rows": rows,
        "columns": columns,
        "sums": maps.sum(axis=(2, 3)).round(4).tolist(),
        "levels": base64.b64encode(levels.reshape(tokens, kinds, -1).tobytes()).decode(),
    }


def encode_picture(picture: Image.Image) -> str:
    """Return a picture as a data URI with a JPEG of a readable size."""
    buffer = BytesIO()
    enlarge(picture).save(buffer, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
