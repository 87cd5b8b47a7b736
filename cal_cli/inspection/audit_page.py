"""A page to browse what an audit found: the worst samples first, the contradicted words marked in their text."""

import base64
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from PIL import Image

from cal_cli.data.sample import Conversations, Entry, get_image_names
from cal_cli.inspection.audit_summary import add_delta

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
    """A sample of the page: what is asked and answered in turn, and its numbers."""

    id: str
    images: list[Image.Image]
    turns: list[tuple[str, list[Run]]]
    evidence: float
    contradiction: float
    p_mismatch: float
    loss: float
    is_noise: bool | None


def make_turns(entry: Entry, tokens: pd.DataFrame, begin: int, end: int) -> list[tuple[str, list[Run]]]:
    """Return each question of a sample with the runs of its answer.

    Args:
        entry: the sample.
        tokens: the rows of its tokens, with `delta`.
        begin, end: its most contradicted stretch, in rows.
    """
    questions = [turn["value"].replace("<image>", "").strip() for turn in entry["conversations"] if is_human(turn)]
    levels = np.searchsorted(LEVELS, -tokens["delta"].to_numpy(), side="right")
    inside = (np.arange(len(tokens)) >= begin) & (np.arange(len(tokens)) < end)
    shown = tokens.assign(level=levels, inside=inside)[~tokens["special"].to_numpy()]
    answers: dict[int, list[Run]] = {}
    columns = (shown[name].tolist() for name in ("turn", "level", "inside", "token"))
    for (turn, level, within), run in groupby(zip(*columns, strict=True), key=lambda row: row[:3]):
        answers.setdefault(turn, []).append(Run("".join(row[3] for row in run), level, within))
    return [(question, answers.get(number, [])) for number, question in enumerate(questions)]


def is_human(turn: dict[str, str]) -> bool:
    """Return whether a turn is a question."""
    return turn["from"] == "human"


def find_audited_samples(
    data: Conversations, ranked: pd.DataFrame, parts: Iterable[pa.Table], changed: Collection[int] | None
) -> Iterator[AuditedSample]:
    """Yield the samples of the page, in the order of `ranked`, rows of `AuditSummary.samples`.

    `parts` are the tokens of the audit, and `changed` the places of samples known to be wrong; None if that is unknown.
    """
    wanted = set(ranked["index"].tolist())
    found: dict[int, pd.DataFrame] = {}
    for part in parts:
        for index, rows in add_delta(part).groupby("index", sort=False):
            if index in wanted:
                found[index] = rows
    for row in ranked.rename(columns={"index": "place"}).itertuples():
        entry = data.entries[row.place]
        yield AuditedSample(
            id=row.sample_id,
            images=[data.open_image(name) for name in get_image_names(entry)],
            turns=make_turns(entry, found[row.place], row.begin, row.end),
            evidence=row.evidence,
            contradiction=row.contradiction,
            p_mismatch=row.p_mismatch,
            loss=row.loss,
            is_noise=None if changed is None else row.place in changed,
        )


def render_audit(samples: Iterable[AuditedSample], title: str, facts: Sequence[str]) -> str:
    """Render the page as HTML that needs no network, of about `PAGE_LENGTH` at most; text from the data is escaped.

    Args:
        samples: the worst first; those that exceed the size are not read.
        title: of the page.
        facts: sentences to begin with.
    """
    environment = Environment(loader=PackageLoader("cal_cli", "inspection"), autoescape=True)
    environment.globals.update(data_uri=make_thumbnail)
    article = environment.get_template("audit_sample.html.jinja")
    articles, size = [], 0
    for number, sample in enumerate(samples, start=1):
        articles.append(Markup(article.render(sample=sample, number=number)))
        size += len(articles[-1])
        if size > PAGE_LENGTH:
            break
    return environment.get_template("audit.html.jinja").render(articles=articles, title=title, facts=facts)


def make_thumbnail(image: Image.Image) -> str:
    """Return an image as a data URI with a JPEG of at most `THUMBNAIL` pixels in width and height."""
    small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
