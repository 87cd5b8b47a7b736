"""The four pages, HTML that needs no network: heat map, attention, patch words and audit; attention for print."""

import base64
import math
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from jinja2 import Environment, PackageLoader, Template
from markupsafe import Markup
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from PIL import Image

from cal_cli.data.sample import Conversations, Entry, get_image_names
from cal_cli.inspection.attention import ImageGrid
from cal_cli.inspection.audit import add_delta
from cal_cli.inspection.patch_words import PatchWords, spell_word
from cal_cli.inspection.tokens import EDGES, Piece, RankedWord, Token
from cal_cli.runtime.files import encode_figure

SCALE = 5.0  # as in the paper: full colour at a delta of 5; tokens that the image contradicts (below 0) are blue
SEEN, CONTRADICTED = (230, 97, 1), (50, 100, 220)


def load_template(name: str, **functions: Callable[..., Any]) -> Template:
    """Load the template of a page, which calls some functions; it escapes text from data and models."""
    environment = Environment(loader=PackageLoader("cal_cli", "inspection"), autoescape=True)
    return environment.get_template(f"{name}.html.jinja", globals=functions)


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
    colours: dict[str, Any] = {"colour": get_colour, "grade": grade, "grade_weight": grade_weight}
    template = load_template("heatmap", data_uri=encode_image, describe=describe_token, **colours)
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


def encode_image(image: Image.Image, side: int = 512, kind: str = "png", **options: Any) -> str:
    """Encode an image of at most `side` pixels in width and height as a data URI."""
    small, buffer = image.convert("RGB"), BytesIO()
    small.thumbnail((side, side))
    small.save(buffer, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


SIDE = 448  # pixels of the longer side of an image with maps
SUMMED, RELEVANCY = "attention, sum over layers", "relevancy"


@dataclass
class ImageMaps:
    """Maps of every token over one image.

    Attributes:
        image: as the image tokens see it.
        maps: float [tokens, kinds, rows, columns], in the order of `list_kinds`.
    """

    image: Image.Image
    maps: np.ndarray


@dataclass
class AttentionSample:
    """A sample of the page.

    Attributes:
        id: of the sample.
        pieces: the text of each token of the conversation, and the number of the map of a supervised one, else None.
        words: the number of the word that each piece belongs to, see `number_words`.
        checkpoints: for each checkpoint its name and its images.
    """

    id: str
    pieces: list[tuple[str, int | None]]
    words: list[int]
    checkpoints: list[tuple[str, list[ImageMaps]]]


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
    template = load_template("attention", data_uri=encode_enlarged, pack=pack_maps)
    return template.render(samples=samples, kinds=kinds, title=title, note=note)


def encode_enlarged(image: Image.Image) -> str:
    """Encode an image so that its longer side has `SIDE` pixels; pixels of a small one stay visible."""
    scale = SIDE / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    resampling = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return encode_image(image.convert("RGB").resize(size, resampling), SIDE, "jpeg", quality=90)


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


@dataclass
class PatchImage:
    """One image of a sample, its image tokens and their words; the tokens are those `part` of all of the sample."""

    image: Image.Image
    grid: ImageGrid
    words: PatchWords
    part: slice


@dataclass
class PatchSample:
    """A sample of the page: for each checkpoint its name and its images."""

    id: str
    checkpoints: list[tuple[str, list[PatchImage]]]


def render_patch_words(samples: Sequence[PatchSample], tokenizer: Any, title: str) -> str:
    """Render the page as HTML that needs no network; text from the model is escaped."""
    template = load_template("patches", data_uri=encode_enlarged, pack=partial(pack_words, tokenizer=tokenizer))
    return template.render(samples=samples, title=title)


def pack_words(image: PatchImage, tokenizer: Any) -> dict[str, Any]:
    """Pack the words of an image's tokens for the page: a dictionary of words, and numbers into it with values."""
    ids = image.words.ids[:, image.part].numpy()
    values = image.words.values[:, image.part].double().numpy()
    known = np.unique(ids)
    spelled = [spell_word(tokenizer, int(number)) for number in known]
    return {
        "stages": image.words.stages,
        "words": [text for text, _ in spelled],
        "whole": [int(whole) for _, whole in spelled],
        "boxes": [None if np.isnan(box).any() else box.round(4).tolist() for box in image.grid.boxes.double().numpy()],
        "ids": np.searchsorted(known, ids).tolist(),
        "values": values.round(3).tolist(),
    }


LEVELS = (1.0, 2.0, 4.0)  # nats by which an image must make a token less probable for each stronger mark
THUMBNAIL = 160  # pixels
PAGE_LENGTH = 3_000_000  # characters; the page ends with the sample that exceeds this


class Run(NamedTuple):
    """Consecutive tokens of an answer that are shown alike."""

    text: str
    level: int  # how strongly the image contradicts them, from 0 for not at all
    in_stretch: bool  # of the sample's most contradicted stretch


@dataclass
class AuditedSample:
    """A sample of the page: its images, what is asked and answered in turn, and its row of the audit's table.

    The row also has the `turn` in which it is to be judged (-1 for not), and the `verdict` on it, None for none yet.
    """

    images: list[Image.Image]
    turns: list[tuple[str, list[Run]]]
    row: Any


def make_turns(entry: Entry, tokens: pd.DataFrame, begin: int, end: int) -> list[tuple[str, list[Run]]]:
    """Return each question of a sample with the runs of its answer.

    Args:
        entry: the sample.
        tokens: the rows of its tokens, with `delta`.
        begin, end: its most contradicted stretch, in rows.
    """
    questions = [
        turn["value"].replace("<image>", "").strip() for turn in entry["conversations"] if turn["from"] == "human"
    ]
    levels = np.searchsorted(LEVELS, -tokens["delta"].to_numpy(), side="right")
    inside = (np.arange(len(tokens)) >= begin) & (np.arange(len(tokens)) < end)
    shown = tokens.assign(level=levels, inside=inside)[~tokens["special"].to_numpy()]
    answers: dict[int, list[Run]] = {}
    columns = (shown[name].tolist() for name in ("turn", "level", "inside", "token"))
    for (turn, level, within), run in groupby(zip(*columns, strict=True), key=lambda row: row[:3]):
        answers.setdefault(turn, []).append(Run("".join(row[3] for row in run), level, within))
    return [(question, answers.get(number, [])) for number, question in enumerate(questions)]


def find_audited_samples(
    data: Conversations, table: pd.DataFrame, parts: Iterable[pa.Table]
) -> Iterator[AuditedSample]:
    """Yield the samples of the page, those to judge first, then by their rank.

    Args:
        data: that were audited.
        table: the rows of the audit's table to show, with `turn` and `verdict`, see `AuditedSample`.
        parts: the tokens of the audit.
    """
    wanted = pa.array(table["index"])
    tokens: dict[int, pd.DataFrame] = {}
    for part in parts:
        tokens |= dict(iter(add_delta(part.filter(pc.is_in(part["index"], wanted))).groupby("index", sort=False)))
    ordered = table.assign(later=table["turn"] < 0).sort_values(["later", "rank"])
    for row in ordered.rename(columns={"index": "place"}).itertuples():
        entry = data.entries[row.place]
        images = [data.open_image(name) for name in get_image_names(entry)]
        yield AuditedSample(images, make_turns(entry, tokens[row.place], row.begin, row.end), row)


def render_audit(
    samples: Iterable[AuditedSample], title: str, facts: Sequence[str], design: Mapping[str, Any] | None = None
) -> str:
    """Render the page as HTML that needs no network, of about `PAGE_LENGTH` at most; text from the data is escaped.

    Args:
        samples: those to judge, then the others, the worst first; others that exceed the size are not read.
        title: of the page.
        facts: sentences to begin with.
        design: how the samples to judge were chosen, for `verdicts.json`; None if there are none.
    """
    encode = partial(encode_image, side=THUMBNAIL, kind="jpeg", quality=85)
    article = load_template("audit_sample", data_uri=encode)
    articles, size = [], 0
    for sample in samples:
        articles.append((sample.row.rank, Markup(article.render(sample=sample, row=sample.row))))
        size += len(articles[-1][1])
        if size > PAGE_LENGTH and sample.row.turn < 0:
            break
    articles.sort(key=itemgetter(0))
    page = load_template("audit")
    return page.render(articles=[text for _, text in articles], title=title, facts=facts, design=design)


CELL = 1.15  # inches
WORDS = 6  # of a sample, if none are chosen
# red that is opaque where a word looks most, and transparent where it does not look
HEAT = ListedColormap([(0.84, 0.1, 0.11, 0.7 * level / 255) for level in range(256)])


def draw_attention(samples: Sequence[AttentionSample], kind: int, file_format: str, words: Sequence[str]) -> bytes:
    """Draw, for each sample and checkpoint, the image and where some words look in it.

    A word has the mean of the maps of its tokens. Its maps are drawn relative to the largest of their cells with any
    checkpoint, so that checkpoints can be compared. Above each map is the sum of its cells.

    Args:
        samples: of which the first image is drawn.
        kind: the number of a kind of map in `list_kinds`.
        file_format: `pdf`, `png` or `svg`.
        words: those to draw, in lower case; empty means the `WORDS` words of each sample with the largest sums.

    Raises ValueError if a sample has none of the words.
    """
    chosen = [choose_words(sample, kind, words) for sample in samples]
    rows, columns = sum(len(sample.checkpoints) for sample in samples), 1 + max(map(len, chosen))
    figure = Figure(figsize=(CELL * columns, 1.25 * CELL * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    lines = iter(grid)
    for sample, places in zip(samples, chosen, strict=True):
        shown = {name: images[0] for name, images in sample.checkpoints}
        maps = {
            name: [seen.maps[tokens, kind].mean(axis=0) for tokens in places.values()] for name, seen in shown.items()
        }
        largest = [max(float(seen.max()) for seen in same) for same in zip(*maps.values(), strict=True)]
        for name, seen in shown.items():
            line = next(lines)
            image = np.asarray(seen.image.convert("RGB"))
            for axes in line[: 1 + len(places)]:
                axes.imshow(image, extent=(0, 1, 1, 0))
            lines_of_name = [part for words in name.split("__") for part in textwrap.wrap(words, 24)]
            line[0].set_title("\n".join(lines_of_name), fontsize=6, parse_math=False)
            for axes, word, heat, top in zip(line[1:], places, maps[name], largest, strict=False):
                axes.imshow(heat, cmap=HEAT, vmin=0, vmax=max(top, 1e-12), extent=(0, 1, 1, 0))
                axes.set_title(f"{word}\n{heat.sum():.2f}", fontsize=7, parse_math=False)
    return encode_figure(figure, file_format, 200)


def choose_words(sample: AttentionSample, kind: int, words: Sequence[str]) -> dict[str, list[int]]:
    """Choose words of a sample, in the order of its text: the numbers of their tokens' maps, by the word.

    Of a word that occurs several times the first is chosen. Raises ValueError if the sample has none of `words`.
    """
    spelled: dict[int, str] = {}
    tokens: dict[int, list[int]] = {}
    for word, (text, number) in zip(sample.words, sample.pieces, strict=True):
        if word >= 0 and number is not None:
            spelled[word] = spelled.get(word, "") + text
            tokens.setdefault(word, []).append(number)
    by_word: dict[str, list[int]] = {}
    for word, spelling in spelled.items():
        text = spelling.strip().strip(EDGES).lower()
        if any(character.isalnum() for character in text):
            by_word.setdefault(text, tokens[word])
    if words:
        chosen = [word for word in by_word if word in words]
        if not chosen:
            raise ValueError(
                f"sample {sample.id} has none of the words {', '.join(words)}; it has {', '.join(by_word)}"
            )
    else:
        maps = [images[0].maps[:, kind] for _, images in sample.checkpoints]
        sums = {word: sum(float(heat[by_word[word]].sum()) / len(by_word[word]) for heat in maps) for word in by_word}
        chosen = sorted(sums, key=lambda word: -sums[word])[:WORDS]
    return {word: by_word[word] for word in by_word if word in chosen}
