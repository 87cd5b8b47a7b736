"""A benchmark from a data set: a short YAML names the data, the prompt and the metric; code is needed for neither."""

import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined
from jinja2.sandbox import SandboxedEnvironment
from omegaconf import OmegaConf
from PIL import Image, ImageDraw

from cal_cli.config import build
from cal_cli.data.llava_json import open_image, open_inside
from cal_cli.data.tables import BUILDERS, files_of, folder_of, undecoded
from cal_cli.errors import InputError
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


def rows_of(path: str, name: str | None, split: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """A data set with its pictures as bytes, and what pins its state: a commit of the hub, or the files' hash.

    Raises:
        InputError: it cannot be had.
    """
    import datasets  # seconds, which the default benchmark's user should not wait

    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    files = files_of_split(Path(path), name, split)
    try:
        if files:
            found = datasets.load_dataset(BUILDERS[files[0].suffix], data_files=[str(file) for file in files])["train"]
            state: dict[str, Any] = {"sha256": sha256_of(files)}
        elif Path(path).exists():
            raise InputError(f"benchmark.path={path}: holds no {', '.join(BUILDERS)} file of the split {split}")
        else:
            found = datasets.load_dataset(path, name, split=split, revision=revision)
            state = {"revision": commit_of(found) or revision}
    except InputError:
        raise
    except Exception as error:  # whatever a builder stumbles on
        cause = str(error.__cause__ or error).strip().splitlines()
        told = cause[0] if cause else type(error).__name__
        if files:
            raise InputError(f"benchmark.path={path}: cannot be read: {told}") from error
        raise InputError(
            f"benchmark.path={path}: neither a folder here nor a data set that the hub or its cache gives ({told}): "
            f"where there is a network run `hf download --repo-type dataset {path} --local-dir {Path(path).name}` and "
            f"give benchmark.path={Path(path).name}, a folder with the files of the split {split} (.parquet, or .json "
            "with the images beside it)"
        ) from error
    for column, feature in found.features.items():
        if isinstance(getattr(feature, "feature", feature), datasets.Image):
            found = undecoded(found, column, datasets)
    return found, state


def files_of_split(path: Path, name: str | None, split: str) -> list[Path]:
    """The data files of a folder that belong to a configuration and a split, by their names.

    Names as the hub gives them (`test-00000-of-00002.parquet`) must name the split; of others all are read if none
    does.
    """

    def naming(word: str | None, files: list[Path]) -> list[Path]:
        return [file for file in files if word and re.search(rf"(^|\W|_){re.escape(word)}(\W|_|$)", inside(file, path))]

    files = files_of(path)
    files = naming(name, files) or files
    told = naming(split, files)
    return told if told or any(re.search(r"-\d+-of-\d+", file.name) for file in files) else files


def inside(file: Path, folder: Path) -> str:
    """A file's name with those of the folders between it and `folder`."""
    return str(file.relative_to(folder)) if file != folder else file.name


def sha256_of(files: Sequence[Path]) -> str:
    """Of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def commit_of(rows: Any) -> str | None:
    """The hub's commit that a data set was made from, as `datasets` notes it with the files it has fetched."""
    for url in rows.info.download_checksums or {}:
        found = re.search(r"@([0-9a-f]{40})/", url)
        if found:
            return found[1]
    return None


@dataclass
class Picture:
    """A row's pictures, read when they are asked for: nothing is kept of them.

    Args:
        rows: the data set with no column but that of the pictures, or None.
        number: of the row.
        folder: where files lie.
    """

    rows: Any
    number: int
    folder: Path

    @property
    def values(self) -> list[Any]:
        if self.rows is None:
            return []
        (value,) = self.rows[self.number].values()
        return [one for one in (value if isinstance(value, list) else [value]) if one is not None]

    def open(self) -> list[Image.Image]:
        """The pictures as RGB.

        Raises:
            InputError: one cannot be read.
        """
        return [self._open(value) for value in self.values]

    def _open(self, value: Any) -> Image.Image:
        if isinstance(value, str):
            return open_inside(self.folder, value)
        content = value if isinstance(value, bytes) else value["bytes"]
        return open_image(Path(value["path"]) if content is None else io.BytesIO(content))

    @property
    def shown(self) -> bool:
        return bool(self.values)

    @cached_property
    def size(self) -> tuple[int, int]:
        return self.open()[0].size

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]

    def name(self) -> str | None:
        """The same for the same pictures: a hash of what they are read from."""
        values = self.values
        if not values:
            return None
        digest = hashlib.sha256()
        for value in values:
            content = value if isinstance(value, bytes | str) else value["bytes"] or value["path"]
            digest.update(content.encode() if isinstance(content, str) else content)
        return digest.hexdigest()[:16]


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
            InputError: a row does not fit the expressions, or two questions have one id.
        """
        found: dict[str, Question] = {}
        words = self.rows.remove_columns([self.image] if self.image is not None else [])
        pictures = self.rows.select_columns([self.image]) if self.image is not None else None
        for number in range(len(self.rows)):
            for question in self.of_row(number, words[number], Picture(pictures, number, self.folder)):
                if question.id in found:
                    raise InputError(f"benchmark.id={self.id}: two questions are called {question.id}")
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
        shown, name = " ".join([IMAGE] * len(picture.values)), picture.name()
        identity = self._value("id", known)
        if IMAGE not in prompt and shown:
            prompt = f"{shown}\n{prompt}"
        # as many places as there are pictures: what a row's own words have beyond is no picture
        *placed, rest = prompt.split(IMAGE, len(picture.values))
        prompt = IMAGE.join([*placed, rest.replace(IMAGE, "")])
        return Question(
            id=place if identity is None else str(identity),
            picture=name if box is None or name is None else f"{name}-{json.dumps(list(box))}",
            question=prompt,
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


def outlined(picture: Picture, box: Sequence[float]) -> list[Image.Image]:
    """A row's picture with a red line around a box (left, top, width, height), as lmms-eval marks a region."""
    (image,) = picture.open()
    left, top, width, height = box
    ImageDraw.Draw(image).rectangle([left, top, left + width, top + height], outline="red")
    return [image]
