"""Figure 2a of the paper as a figure for print: images, and beside each its text with coloured tokens."""

import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cal_cli.inspection.heatmap import CONTRADICTED, SEEN, HeatmapSample, grade
from cal_cli.inspection.tokens import Piece
from cal_cli.runtime.figure import encode_figure

WIDTH, IMAGE, GAP = 6.5, 1.1, 0.15  # inches: of the figure, of an image, and between things
SIZE = 8.0  # of the text, in points
LINE = 1.6 * SIZE / 72  # inches from line to line
CHARACTER = 0.602 * SIZE / 72  # inches: the width of a character of DejaVu Sans Mono
COLUMNS = int((WIDTH - IMAGE - GAP) / CHARACTER)


def draw_heatmap(samples: Sequence[HeatmapSample], file_format: str) -> bytes:
    """Draw the samples as PDF, PNG or SVG; a token's colour is its difference in log-probability, as on the page."""
    lines = [break_lines(join_texts(sample.texts), COLUMNS) for sample in samples]
    heights = [
        max(len(text) * LINE, IMAGE * len(sample.images)) + GAP for sample, text in zip(samples, lines, strict=True)
    ]
    total = sum(heights)
    figure = Figure(figsize=(WIDTH, total))
    top = total
    for sample, text, height in zip(samples, lines, heights, strict=True):
        for number, image in enumerate(sample.images):
            bottom = top - IMAGE * (number + 1)
            axes = figure.add_axes((0, bottom / total, IMAGE / WIDTH, IMAGE / total))
            axes.imshow(np.asarray(image.convert("RGB")))
            axes.set_axis_off()
        area = figure.add_axes((0, (top - height) / total, 1, height / total))
        area.set(xlim=(0, WIDTH), ylim=(-height, 0))
        area.set_axis_off()
        for row, parts in enumerate(text):
            x, y = IMAGE + GAP, -(row + 0.5) * LINE
            for piece in parts:
                width = len(piece.text) * CHARACTER
                if piece.token:
                    strength = grade(piece.token.logprob_delta)
                    colour = tuple(level / 255 for level in (SEEN if strength > 0 else CONTRADICTED))
                    area.add_patch(
                        Rectangle((x, y - LINE / 2), width, LINE, color=(*colour, abs(strength)), linewidth=0)
                    )
                font = {"family": "DejaVu Sans Mono", "size": SIZE, "color": "black" if piece.token else "0.5"}
                area.text(x, y, piece.text, font, va="center_baseline", parse_math=False)
                x += width
        top -= height
    return encode_figure(figure, file_format, 200)


def join_texts(texts: Mapping[str, Sequence[Piece]]) -> list[Piece]:
    """Join the texts of several checkpoints, each under its name; a single one needs none."""
    if len(texts) == 1:
        return list(*texts.values())
    joined: list[Piece] = []
    for name, pieces in texts.items():
        joined += [Piece(f"{name}\n", None), *pieces, Piece("\n", None)]
    return joined[:-1]


def break_lines(pieces: Sequence[Piece], columns: int) -> list[list[Piece]]:
    """Break pieces into lines of at most so many characters, between words where possible."""
    characters = [(character, piece.token) for piece in pieces for character in piece.text]
    lines: list[list[Piece]] = []
    place = 0
    for paragraph in "".join(piece.text for piece in pieces).split("\n"):
        wrapped = textwrap.wrap(paragraph, columns, drop_whitespace=False, expand_tabs=False, replace_whitespace=False)
        for line in wrapped or [""]:
            parts: list[Piece] = []
            for character, token in characters[place : place + len(line)]:
                if parts and parts[-1].token is token:
                    parts[-1] = Piece(parts[-1].text + character, token)
                else:
                    parts.append(Piece(character, token))
            lines.append(parts)
            place += len(line)
        place += 1  # the line break
    return lines
