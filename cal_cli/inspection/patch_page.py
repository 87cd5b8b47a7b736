"""A page on which an image token shows its words, for one checkpoint or two side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from PIL import Image

from cal_cli.inspection.attention_page import encode_picture
from cal_cli.inspection.image_grid import ImageGrid
from cal_cli.inspection.patch_words import PatchWords, spell_word


@dataclass
class PatchPicture:
    """One picture of a sample, its image tokens and their words; the tokens are those `part` of all of the sample."""

    picture: Image.Image
    grid: ImageGrid
    words: PatchWords
    part: slice


@dataclass
class PatchSample:
    """A sample of the page: for each checkpoint its name and its pictures."""

    id: str
    checkpoints: list[tuple[str, list[PatchPicture]]]


def render_patch_words(samples: Sequence[PatchSample], tokenizer: Any, title: str) -> str:
    """Render the page as HTML that needs no network; text from the model is escaped."""
    environment = Environment(loader=PackageLoader("cal_cli", "inspection"), autoescape=True)
    environment.globals.update(data_uri=encode_picture, pack=lambda picture: pack_words(picture, tokenizer))
    return environment.get_template("patches.html.jinja").render(samples=samples, title=title)


def pack_words(picture: PatchPicture, tokenizer: Any) -> dict[str, Any]:
    """Pack the words of a picture's tokens for the page: a dictionary of words, and numbers into it with values."""
    ids = picture.words.ids[:, picture.part].numpy()
    values = picture.words.values[:, picture.part].double().numpy()
    known = np.unique(ids)
    spelled = [spell_word(tokenizer, int(number)) for number in known]
    return {
        "stages": picture.words.stages,
        "words": [text for text, _ in spelled],
        "whole": [int(whole) for _, whole in spelled],
        "boxes": [
            None if np.isnan(box).any() else box.round(4).tolist() for box in picture.grid.boxes.double().numpy()
        ],
        "ids": np.searchsorted(known, ids).tolist(),
        "values": values.round(3).tolist(),
    }
