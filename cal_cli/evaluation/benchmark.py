"""A benchmark from a data set: a short YAML names the data, the prompt and the metric; no code is needed."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import SandboxedEnvironment
from omegaconf import OmegaConf

from cal_cli.data.hf_datasets import get_folder
from cal_cli.data.images import check_background
from cal_cli.evaluation.benchmark_data import Picture, compute_fingerprint, draw_outline, load_rows
from cal_cli.evaluation.metrics import Metric
from cal_cli.evaluation.questions import Question
from cal_cli.runtime.config import build
from cal_cli.runtime.errors import InputError

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

    Raises:
        InputError: the data are not available or do not fit.
    """
    if max_new_tokens < 1:
        raise InputError(f"benchmark.max_new_tokens={max_new_tokens}: must be at least 1")
    check_background(background, "benchmark.background")
    holder = OmegaConf.create({"benchmark.metric": metric})
    built: Metric = build(holder, "benchmark.metric")
    rows, state = load_rows(path, name, split, revision)
    folder = Path(image_folder) if image_folder is not None else get_folder(path)
    expressions = {"answers": answers, "id": id, "where": where, "each": each, "outline": outline}
    questions = RowReader(rows, image, folder, background, prompt, dict(tags or {}), expressions).make_questions()
    if not questions:
        raise InputError(f"benchmark.path={path}: the split {split} has no question")
    return Benchmark(
        split=split,
        questions=questions,
        metric=built,
        metric_config=OmegaConf.to_container(holder)["benchmark.metric"],  # type: ignore[index,call-overload,arg-type]
        max_new_tokens=max_new_tokens,
        source={"path": path, "name": name, **state},
    )


@dataclass
class RowReader:
    """Makes questions of rows; see `make_benchmark` for its attributes."""

    rows: Any
    image: str | None
    folder: Path
    background: str | None
    prompt: str
    tags: dict[str, str]
    expressions: dict[str, str | None]

    def __post_init__(self) -> None:
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
        self._expressions = {}
        for key, text in self.expressions.items():
            try:
                self._expressions[key] = environment.compile_expression(text, undefined_to_none=False) if text else None
            except TemplateError as error:
                raise InputError(f"benchmark.{key}={text}: is not a Jinja expression: {error}") from error
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
        found: dict[str, Question] = {}
        words = self.rows.remove_columns([self.image] if self.image is not None else [])
        pictures = self.rows.select_columns([self.image]) if self.image is not None else None
        for number in range(len(self.rows)):
            picture = Picture(pictures, number, self.folder, self.background)
            for question in self.read_row(number, words[number], picture):
                if question.id in found:  # happens in published data
                    question.id = f"{question.id}-{number}"
                found[question.id] = question
        return list(found.values())

    def read_row(self, number: int, row: Mapping[str, Any], picture: Picture) -> list[Question]:
        """Make the questions of one row."""
        known = {**row, "row": row, "number": number, "picture": picture}
        if self.expressions["where"] and not self._evaluate("where", known):
            return []
        if not self.expressions["each"]:
            return [self._make_question(number, known, picture, str(number))]
        parts = self._evaluate("each", known)
        return [
            self._make_question(number, {**known, "each": part}, picture, f"{number}-{place}")
            for place, part in enumerate(parts)
        ]

    def _make_question(self, number: int, known: Mapping[str, Any], picture: Picture, place: str) -> Question:
        answers = self._evaluate("answers", known)
        answers = [str(answer) for answer in (answers if isinstance(answers, list | tuple) else [answers])]
        box = self._evaluate("outline", known)
        try:
            prompt = self._prompt.render(known)
            tags = {name: template.render(known) for name, template in self._tags.items()}
        except TemplateError as error:
            raise InputError(f"benchmark: row {number} does not fit prompt and tags: {error}") from error
        values = picture.read()
        name, identity = compute_fingerprint(values), self._evaluate("id", known)
        return Question(
            id=place if identity is None else str(identity),
            picture=name if box is None or name is None else f"{name}-{json.dumps(list(box))}",
            question=place_images(prompt, len(values)),
            answers=answers,
            images=picture.open if box is None else partial(draw_outline, picture, list(box)),
            tags=tags,
        )

    def _evaluate(self, key: str, known: Mapping[str, Any]) -> Any:
        expression = self._expressions[key]
        if expression is None:
            return None
        try:
            value = expression(**known)
            return str(value) if isinstance(value, Undefined) else value  # str() raises an error that names it
        except (TemplateError, TypeError, KeyError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"benchmark.{key}={self.expressions[key]}: row {known['number']}: {error}") from error


def place_images(prompt: str, pictures: int) -> str:
    """Give a prompt as many `<image>` as there are images: missing ones come first, superfluous ones are removed."""
    lacking = pictures - prompt.count(IMAGE)
    if lacking > 0:
        return f"{' '.join([IMAGE] * lacking)}\n{prompt}"
    *placed, rest = prompt.split(IMAGE, pictures)
    return IMAGE.join([*placed, rest.replace(IMAGE, "")])
