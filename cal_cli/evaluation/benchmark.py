"""A benchmark from a data set: a short YAML names the data, the prompt and the metric; code is needed for neither."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import SandboxedEnvironment
from omegaconf import OmegaConf

from cal_cli.config import build
from cal_cli.data.tables import folder_of
from cal_cli.errors import InputError
from cal_cli.evaluation.dataset import Picture, fingerprint, outlined, rows_of
from cal_cli.evaluation.metrics import Metric
from cal_cli.evaluation.questions import Question

IMAGE = "<image>"


@dataclass
class Benchmark:
    """Questions, how their answers are scored, and what must be told beside the scores.

    Attributes:
        split: of the data.
        questions: in the order of the data.
        metric: scores them.
        max_new_tokens: after which an answer is cut.
        source: where the data come from, with what pins their state.
    """

    split: str
    questions: Sequence[Question]
    metric: Metric
    max_new_tokens: int
    source: dict[str, Any] = field(default_factory=dict)


def dataset_benchmark(
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
    """A benchmark from a data set of the hub, or from the same files in a folder.

    `prompt` and the `tags` are Jinja templates; `answers`, `id`, `where`, `each` and `outline` Jinja expressions. Both
    see a row's columns by name, and under `row` (for names that are no words: `row['l2-category']`), its number as
    `number`, and of its picture `picture.width` and `picture.height` in pixels and whether one is `picture.shown`.

    Args:
        path: hub id, or a folder or file: Parquet as downloaded from the hub, JSON or JSONL with images beside it.
        split: its name; of several files in a folder those are read whose names hold it.
        prompt: what the model is asked; pictures come first where it has no `<image>`.
        answers: the right answers, text or a list of texts.
        metric: its `_target_` and arguments.
        max_new_tokens: after which an answer is cut.
        name: of the configuration, where a data set has several.
        revision: branch, tag or commit of the hub's data set.
        image: the column of the picture, or of a list of them; null: text alone.
        image_folder: where pictures lie whose file names the column holds; null: beside the data.
        id: of a question; null: the row's number.
        where: rows for which it is false are left out.
        each: a list of a row, for each of whose elements (as `each`) the row is one question.
        outline: (left, top, width, height) in pixels, drawn on the picture in red.
        tags: what the metric needs to know of a question.
        source: who made it; for the reader.
        headline: the values that stand for the benchmark; for `cal report`.
        lmms_eval: the task of lmms-eval that is the same; for `engine=lmms_eval`.
        version: of this file: raise it when prompt or scoring change.

    Raises:
        InputError: the data cannot be had or do not fit.
    """
    if max_new_tokens < 1:
        raise InputError(f"benchmark.max_new_tokens={max_new_tokens}: must be at least 1")
    holder = OmegaConf.create({"benchmark.metric": metric})
    scored: Metric = build(holder, "benchmark.metric")
    rows, state = rows_of(path, name, split, revision)
    read = RowReader(
        rows=rows,
        prompt=prompt,
        answers=answers,
        image=image,
        folder=Path(image_folder) if image_folder is not None else folder_of(path),
        id=id,
        where=where,
        each=each,
        outline=outline,
        tags=dict(tags or {}),
    )
    questions = read.questions()
    if not questions:
        raise InputError(f"benchmark.path={path}: the split {split} has no question")
    return Benchmark(split, questions, scored, max_new_tokens, {"path": path, "name": name, **state})


@dataclass
class RowReader:
    """Makes questions of rows; what its attributes mean is told by `dataset_benchmark`."""

    rows: Any
    prompt: str
    answers: str
    image: str | None
    folder: Path
    id: str | None
    where: str | None
    each: str | None
    outline: str | None
    tags: dict[str, str]

    def __post_init__(self) -> None:
        environment = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)

        def compiled(key: str, expression: str | None) -> Callable[..., Any] | None:
            try:
                return environment.compile_expression(expression, undefined_to_none=False) if expression else None
            except TemplateError as error:
                raise InputError(f"benchmark.{key}={expression}: is no Jinja expression: {error}") from error

        self._expressions = {key: compiled(key, getattr(self, key)) for key in ("answers", "id", "where", "each")}
        self._expressions["outline"] = compiled("outline", self.outline)
        try:
            self._prompt = environment.from_string(self.prompt)
            self._tags = {name: environment.from_string(template) for name, template in self.tags.items()}
        except TemplateError as error:
            raise InputError(f"benchmark: prompt or tags hold no Jinja template: {error}") from error
        if self.image is not None and self.image not in self.rows.column_names:
            raise InputError(
                f"benchmark.image={self.image}: there is no such column; there are {', '.join(self.rows.column_names)}"
            )

    def questions(self) -> list[Question]:
        """All questions.

        Raises:
            InputError: a row does not fit the expressions.
        """
        found: dict[str, Question] = {}
        words = self.rows.remove_columns([self.image] if self.image is not None else [])
        pictures = self.rows.select_columns([self.image]) if self.image is not None else None
        for number in range(len(self.rows)):
            for question in self.of_row(number, words[number], Picture(pictures, number, self.folder)):
                if question.id in found:  # as real data have it now and then
                    question.id = f"{question.id}-{number}"
                found[question.id] = question
        return list(found.values())

    def of_row(self, number: int, row: Mapping[str, Any], picture: Picture) -> list[Question]:
        """The questions of one row."""
        known = {**row, "row": row, "number": number, "picture": picture}
        where = self._value("where", known)
        if self.where is not None and not where:
            return []
        if self.each is None:
            return [self._question(number, known, picture, str(number))]
        parts = self._value("each", known)
        return [
            self._question(number, {**known, "each": part}, picture, f"{number}-{place}")
            for place, part in enumerate(parts)
        ]

    def _question(self, number: int, known: Mapping[str, Any], picture: Picture, place: str) -> Question:
        answers = self._value("answers", known)
        answers = [str(answer) for answer in (answers if isinstance(answers, list | tuple) else [answers])]
        box = self._value("outline", known)
        try:
            prompt = self._prompt.render(known)
            tags = {name: template.render(known) for name, template in self._tags.items()}
        except TemplateError as error:
            raise InputError(f"benchmark: row {number} does not fit prompt and tags: {error}") from error
        values = picture.values()
        name, identity = fingerprint(values), self._value("id", known)
        return Question(
            id=place if identity is None else str(identity),
            picture=name if box is None or name is None else f"{name}-{json.dumps(list(box))}",
            question=with_places(prompt, len(values)),
            answers=answers,
            images=picture.open if box is None else partial(outlined, picture, list(box)),
            tags=tags,
        )

    def _value(self, key: str, known: Mapping[str, Any]) -> Any:
        expression = self._expressions[key]
        if expression is None:
            return None
        try:
            value = expression(**known)
            return str(value) if isinstance(value, Undefined) else value  # which tells what is not defined
        except (TemplateError, TypeError, KeyError, ValueError, ZeroDivisionError) as error:
            raise InputError(f"benchmark.{key}={getattr(self, key)}: row {known['number']}: {error}") from error


def with_places(prompt: str, pictures: int) -> str:
    """A prompt with as many places for pictures as there are: what lacks comes first, what is beyond is left out."""
    lacking = pictures - prompt.count(IMAGE)
    if lacking > 0:
        return f"{' '.join([IMAGE] * lacking)}\n{prompt}"
    *placed, rest = prompt.split(IMAGE, pictures)
    return IMAGE.join([*placed, rest.replace(IMAGE, "")])
