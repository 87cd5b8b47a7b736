"""A benchmark from a data set: a short YAML names the data, the prompt and the metric; no code is needed."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined, meta
from jinja2.sandbox import SandboxedEnvironment
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from cal_cli.data.formats import find_split_files, get_folder, load_table
from cal_cli.data.images import check_background, open_content
from cal_cli.evaluation.metrics import Metric, Question
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError, shorten

IMAGE = "<image>"


@dataclass
class Benchmark:
    """Questions, how their answers are scored, and what to record with the scores.

    Attributes:
        split: of the data.
        questions: in the order of the data.
        metric: scores the answers.
        metric_config: the `_target_` and the arguments of the metric; results keep it, so that they can be compared.
        max_new_tokens: number of tokens after which an answer is cut.
        source: where the data come from, and what identifies their state.
    """

    split: str
    questions: Sequence[Question]
    metric: Metric
    metric_config: dict[str, Any]
    max_new_tokens: int
    source: dict[str, Any] = field(default_factory=dict)


def make_benchmark(
    path: str,
    split: str,
    prompt: str,
    answers: str,
    metric: Any,
    max_new_tokens: int,
    name: str | None = None,
    revision: str | None = None,
    image: str | None = "image",
    image_folder: str | None = None,
    background: str | None = "white",
    icc: bool | None = None,
    id: str | None = None,
    where: str | None = None,
    each: str | None = None,
    outline: str | None = None,
    tags: dict[str, str] | None = None,
    source: str = "",
    headline: list[str] | None = None,
    lmms_eval: str | None = None,
    version: int = 1,
) -> Benchmark:
    """Make a benchmark from a data set of the hub, or from the same files in a folder.

    `prompt` and `tags` are Jinja templates; `answers`, `id`, `where`, `each` and `outline` are Jinja expressions. Both
    read a row's columns by name, or from `row` (`row['l2-category']`), its number as `number`, the size of its image in
    pixels as `picture.width` and `picture.height`, and whether it has one as `picture.shown`.

    `conf/benchmark/dataset.yaml` documents the arguments.

    Raises InputError if the data are not available or do not fit.
    """
    if max_new_tokens < 1:
        raise InputError(f"benchmark.max_new_tokens={max_new_tokens}: must be at least 1")
    check_background(background, "benchmark.background")
    holder = OmegaConf.create({"benchmark.metric": metric})
    built: Metric = build(holder, "benchmark.metric")
    rows, state = load_rows(path, name, split, revision)
    folder = Path(image_folder) if image_folder is not None else get_folder(path)
    expressions = {"answers": answers, "id": id, "where": where, "each": each, "outline": outline}
    questions = RowReader(rows, image, folder, background, icc, prompt, dict(tags or {}), expressions).make_questions()
    if not questions:
        raise InputError(f"benchmark.path={path}: the split {split} has no question")
    if image is not None and all(question.image_name is None for question in questions):
        raise InputError(
            f"benchmark.image={image}: no question has an image there; benchmark.image=null asks them without"
        )
    check_questions(questions, built)
    return Benchmark(
        split=split,
        questions=questions,
        metric=built,
        metric_config=OmegaConf.to_container(holder)["benchmark.metric"],  # type: ignore[index,call-overload,arg-type]
        max_new_tokens=max_new_tokens,
        source={"path": path, "name": name, **state},
    )


def check_questions(questions: Sequence[Question], metric: Metric) -> None:
    """Raise InputError if the metric cannot score one of the questions, so that nothing is generated in vain."""
    for question in questions:
        try:
            if question.answers:
                metric.check_question(question)
        except (ValueError, KeyError) as error:
            problem = f"it has no tag {error}" if isinstance(error, KeyError) else str(error)
            raise InputError(
                f"question {shorten(question.id)}: benchmark.metric cannot score it: {problem}: change "
                "benchmark.answers, benchmark.tags or benchmark.metric"
            ) from error


@dataclass
class RowImages:
    """A row's images, read each time they are needed."""

    rows: Any  # the data set with only the column of images, or None
    number: int
    folder: Path
    background: str | None  # see `open_image`
    icc: bool | None

    def read(self) -> list[Any]:
        """Read what the row has for each image: its bytes, a name, or both."""
        if self.rows is None:
            return []
        (value,) = self.rows[self.number].values()
        images = value if isinstance(value, list) else [value]
        for image in images:
            if not isinstance(image, bytes | str | None) and not (isinstance(image, dict) and "bytes" in image):
                raise InputError(f"benchmark.image: row {self.number} has {image!r:.80}: give bytes, or names of files")
        return [image for image in images if image is not None and image != {"bytes": None, "path": None}]

    def open(self) -> list[Image.Image]:
        """Open the images as RGB. Raises InputError if one cannot be read."""
        return [self._open(value) for value in self.read()]

    def _open(self, value: Any) -> Image.Image:
        content = get_content(value)
        cached = isinstance(content, str) and not self.folder.is_dir()  # in the cache of a data set of the hub
        opened = Path(str(content)) if cached else content
        return open_content(opened, self.folder, background=self.background, icc=self.icc)

    @property
    def shown(self) -> bool:
        return bool(self.read())

    @cached_property
    def size(self) -> tuple[int, int]:
        return self.open()[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


@dataclass
class RowReader:
    """Makes questions of rows; see `make_benchmark` for its attributes."""

    rows: Any
    image: str | None
    folder: Path
    background: str | None
    icc: bool | None
    prompt: str
    tags: dict[str, str]
    expressions: dict[str, str | None]

    def __post_init__(self) -> None:
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, finalize=write_value)
        self._expressions = {}
        for key, text in self.expressions.items():
            try:
                self._expressions[key] = environment.compile_expression(text, undefined_to_none=False) if text else None
            except TemplateError as error:
                raise InputError(f"benchmark.{key}={text}: is not a Jinja expression: {error}") from error
        answers = environment.parse(f"{{{{ {self.expressions['answers']} }}}}")
        self._answer_columns = meta.find_undeclared_variables(answers)
        try:
            self._prompt = environment.from_string(self.prompt)
            self._tags = {name: environment.from_string(template) for name, template in self.tags.items()}
        except TemplateError as error:
            raise InputError(f"benchmark: prompt or tags are not Jinja templates: {error}") from error
        if self.image is not None and self.image not in self.rows.column_names:
            raise InputError(
                f"benchmark.image={self.image}: there is no such column; there are {', '.join(self.rows.column_names)}"
            )

    def make_questions(self) -> list[Question]:
        """Make all questions. Raises InputError if a row does not fit the expressions."""
        numbered: list[tuple[int, Question]] = []
        words = self.rows.remove_columns([self.image] if self.image is not None else [])
        images = self.rows.select_columns([self.image]) if self.image is not None else None
        for number in range(len(self.rows)):
            row_images = RowImages(images, number, self.folder, self.background, self.icc)
            numbered += [(number, question) for question in self.read_row(number, words[number], row_images)]
        taken, first = {question.id for _, question in numbered}, set()
        for number, question in numbered:
            if question.id in first:  # happens in published data
                question.shared_id = question.id
                while question.id in taken:
                    question.id = f"{question.id}-{number}"
                taken.add(question.id)
            first.add(question.id)
        return [question for _, question in numbered]

    def read_row(self, number: int, row: Mapping[str, Any], row_images: RowImages) -> list[Question]:
        """Make the questions of one row."""
        known = {**row, "row": row, "number": number, "picture": row_images}
        if self.expressions["where"] and not self._evaluate("where", known):
            return []
        if not self.expressions["each"]:
            return [self._make_question(number, known, row_images, str(number))]
        parts = self._evaluate("each", known)
        if not isinstance(parts, list | tuple):
            raise InputError(
                f"benchmark.each={self.expressions['each']}: row {number}: must be a list, not {parts!r:.80}"
            )
        return [
            self._make_question(number, {**known, "each": part}, row_images, f"{number}-{place}")
            for place, part in enumerate(parts)
        ]

    def _make_question(self, number: int, known: Mapping[str, Any], row_images: RowImages, place: str) -> Question:
        values = row_images.read()
        box = self._evaluate("outline", known)
        if box is not None:
            numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(edge, int | float) for edge in box)
            if not numbers or len(values) != 1:
                raise InputError(
                    f"benchmark.outline={self.expressions['outline']}: row {number}: must be four numbers, for a "
                    f"single image, not {box!r:.80} for {len(values)} images"
                )
        try:
            prompt = self._prompt.render(known)
            tags = {name: template.render(known) for name, template in self._tags.items()}
        except Exception as error:  # a template can fail in any way
            raise InputError(f"benchmark: row {number} does not fit prompt and tags: {error}") from error
        name, identity = compute_fingerprint(values), self._evaluate("id", known)
        return Question(
            id=place if identity is None else str(write_value(identity)),
            image_name=name if box is None or name is None else f"{name}-{json.dumps(list(box))}",
            question=place_images(prompt, len(values)),
            answers=self._read_answers(known),
            images=row_images.open if box is None else partial(draw_outline, row_images, list(box)),
            tags=tags,
        )

    def _read_answers(self, known: Mapping[str, Any]) -> list[str]:
        """Return the right answers of a question; none if they are null, nan or blank, as in a split for submission."""
        try:
            answers = self._evaluate("answers", known)
        except InputError:
            if all(known.get(column, "") is not None for column in self._answer_columns):
                raise
            return []  # an expression that needs more of a column than null
        answers = answers if isinstance(answers, list) else [answers]
        answers = [answer for answer in answers if answer is not None and answer == answer]  # nan is no answer
        for answer in answers:
            if not isinstance(answer, str | int | float):
                raise InputError(
                    f"benchmark.answers={self.expressions['answers']}: row {known['number']}: an answer must be a text "
                    f"or a number, not {answer!r:.80}"
                )
        texts = [str(write_value(answer)) for answer in answers]
        return texts if any(text.strip() for text in texts) else []

    def _evaluate(self, key: str, known: Mapping[str, Any]) -> Any:
        expression = self._expressions[key]
        if expression is None:
            return None
        try:
            value = expression(**known)
            value = list(value) if isinstance(value, Iterator | tuple) else value
            for part in value if isinstance(value, list) else [value]:
                if isinstance(part, Undefined):
                    str(part)  # raises an error that names it
            return value
        except Exception as error:  # an expression can fail in any way
            raise InputError(f"benchmark.{key}={self.expressions[key]}: row {known['number']}: {error}") from error


def write_value(value: Any) -> Any:
    """Return a value as it appears in a text: a whole number without `.0`, which a column with nulls may have added.

    Raises TemplateError for null, which would become the word None.
    """
    if value is None:
        raise TemplateError("a value is null; write {{ name or '' }} where it may be")
    return int(value) if isinstance(value, float) and value.is_integer() else value


def place_images(prompt: str, images: int) -> str:
    """Give a prompt as many `<image>` as there are images: missing ones come first, superfluous ones are removed."""
    lacking = images - prompt.count(IMAGE)
    if lacking > 0:
        return f"{' '.join([IMAGE] * lacking)}\n{prompt}"
    *placed, rest = prompt.split(IMAGE, images)
    return IMAGE.join([*placed, rest.replace(IMAGE, "")])


def load_rows(path: str, name: str | None, split: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """Load a data set with its images as bytes, and what identifies it: a commit of the hub, or the files' hash.

    Raises InputError if it is not available.
    """
    files = find_split_files(path, name, split, "benchmark")
    rows = load_table(path, name, split, files, revision, key="benchmark")
    if not files:
        return rows, {"revision": find_commit(rows) or revision}
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return rows, {"sha256": digest.hexdigest()}


def find_commit(rows: Any) -> str | None:
    """Find the hub's commit of a data set, which `datasets` records with its downloads."""
    for url in rows.info.download_checksums or {}:
        commit = re.search(r"@([0-9a-f]{40})/", url)
        if commit:
            return commit[1]
    # the folders of the cache are named after the commit
    folders = {Path(file["filename"]).parent.name for file in rows.cache_files}
    return next((name for name in folders if re.fullmatch(r"[0-9a-f]{40}", name)), None)


def get_content(value: Any) -> bytes | str:
    """Return the contents of an image, or its name, from what a row has for it."""
    if isinstance(value, bytes | str):
        return value
    return value["path"] if value["bytes"] is None else value["bytes"]


def compute_fingerprint(values: Sequence[Any]) -> str | None:
    """Hash what images are read from, so that equal images have equal hashes; None if there are none."""
    if not values:
        return None
    digest = hashlib.sha256()
    for value in values:
        content = get_content(value)
        digest.update(content.encode() if isinstance(content, str) else content)
    return digest.hexdigest()[:16]


def draw_outline(row_images: RowImages, box: Sequence[float]) -> list[Image.Image]:
    """Draw a red box (left, top, width, height) on a row's image, as lmms-eval marks a region."""
    (image,) = row_images.open()
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle([left, top, left + width, top + height], outline="red")
    return [image]
