"""Questions, and the metrics that score their answers.

Each metric splits an answer's score into parts, numbers that can be added up over questions, and computes its values
from their sums. One bootstrap then serves all metrics. The names and scales of the values are lmms-eval's.
"""

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from hydra.utils import get_object
from PIL import Image

from cal_cli.evaluation import scoring_rules as rules
from cal_cli.runtime.errors import InputError, shorten

UNREADABLE = "\ufffc"  # the prediction where an image cannot be read: wrong by every rule, as no answer has this sign


@dataclass
class Question:
    """A question, its right answers, and its images.

    Attributes:
        id: unique in its benchmark.
        image_name: the same for all questions about the same images; None for a question without any.
        question: the text for the model, with `<image>` in the place of each image.
        answers: in the form that the metric needs; empty if they are not known, so that nothing is scored.
        images: opens the images, RGB, one for each `<image>`.
        tags: what else the metric needs, such as the question's kind.
        shared_id: the id that the data give it, if they give it to an earlier question too.
    """

    id: str
    image_name: str | None
    question: str
    answers: list[str]
    images: Callable[[], list[Image.Image]]
    tags: dict[str, str] = field(default_factory=dict)
    shared_id: str | None = None


Parts = dict[str, float]
Sums = Mapping[str, np.ndarray]


class Metric:
    """Scores the answers to a benchmark's questions. A subclass defines `compute`, and `score_one` or `score`.

    Attributes:
        top: the largest possible value, if all values are means of scores from 0; else None.
    """

    top: float | None = None

    def check_requirements(self) -> None:
        """Raise InputError if a package or program that scoring needs is not installed."""

    def check_question(self, question: Question) -> None:
        """Raise ValueError if a question's answers do not fit, KeyError if it has no tag, before anything is generated.

        The default scores an empty prediction.
        """
        self.score([question], [""])

    def score(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        """Return the parts that each answer adds to the metric's sums; `score` is that of the answer itself."""
        pairs = zip(questions, predictions, strict=True)
        return [self.score_one(question, prediction) for question, prediction in pairs]

    def score_one(self, question: Question, prediction: str) -> Parts:
        """Return the parts of one answer, if they do not depend on other answers."""
        raise NotImplementedError

    def compute(self, sums: Sums) -> dict[str, Any]:
        """Compute the metric's values by name; the first is the benchmark's headline.

        Args:
            sums: the sum of each part over the questions, arrays of equal shape, without parts that no question has.
        """
        raise NotImplementedError


def divide(part: Any, whole: Any) -> np.ndarray:
    """Compute `part / whole`, nan where `whole` is 0."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)


def find_kinds(sums: Sums, part: str) -> list[str]:
    """Return the kinds that have a part `<part>/<kind>`, sorted."""
    return sorted(name.partition("/")[2] for name in sums if name.startswith(f"{part}/"))


def find_rule(name: str) -> Callable[..., float]:
    """Return a function of `cal_cli.evaluation.scoring_rules`, or any function by its dotted path.

    Raises InputError if there is no such function.
    """
    if hasattr(rules, name):
        return getattr(rules, name)
    try:
        return get_object(name)
    except Exception as error:  # Hydra wraps whatever an import raises
        raise InputError(
            f"benchmark.metric.rule={name}: neither a rule of evaluation.scoring_rules nor a function's dotted path"
        ) from error


class Mean(Metric):
    """The mean of a rule's scores, over all questions and over each kind.

    Args:
        rule: a function of `cal_cli.evaluation.scoring_rules`, or a dotted path; takes a prediction and the answers.
        name: of the mean over all questions.
        scale: factor of all values.
        given: tags of a question that the rule takes as keyword arguments.
        by: the tag with a question's kind; None means no kinds.
        names: names of the means by kind; a kind that is not listed keeps its own.
    """

    def __init__(
        self,
        rule: str,
        name: str,
        scale: float = 1.0,
        given: list[str] | None = None,
        by: str | None = None,
        names: dict[str, str] | None = None,
    ) -> None:
        self.rule, self.name, self.scale, self.top = find_rule(rule), name, scale, scale
        self.given, self.by, self.names = list(given or ()), by, dict(names or {})

    def check_question(self, question: Question) -> None:
        if self.rule.__module__ == rules.__name__:
            super().check_question(question)
        else:  # another rule may take long for each prediction
            self._find_keywords(question)

    def score_one(self, question: Question, prediction: str) -> Parts:
        keywords = self._find_keywords(question)
        try:
            score = float(self.rule(prediction, question.answers, **keywords))
        except Exception as error:
            if self.rule.__module__ == rules.__name__:
                raise
            raise InputError(
                f"benchmark.metric.rule={self.rule.__module__}.{self.rule.__name__}: question {shorten(question.id)}: "
                f"{type(error).__name__}: {error}; the answers are kept, and the same command scores them"
            ) from error
        parts = {"score": score, "n": 1.0}
        if self.by is not None:
            kind = self.names.get(question.tags[self.by], question.tags[self.by])
            parts |= {f"score/{kind}": score, f"n/{kind}": 1.0}
        return parts

    def compute(self, sums: Sums) -> dict[str, Any]:
        values = {self.name: divide(sums["score"], sums["n"]) * self.scale}
        kinds = {kind: divide(sums[f"score/{kind}"], sums[f"n/{kind}"]) * self.scale for kind in find_kinds(sums, "n")}
        return values | kinds

    def _find_keywords(self, question: Question) -> dict[str, str]:
        missing = [name for name in (*self.given, *([] if self.by is None else [self.by])) if name not in question.tags]
        if missing:
            raise ValueError(f"it has no tag {missing[0]!r}")
        return {name: question.tags[name] for name in self.given}


class OCRBench(Metric):
    """Answers contained in predictions, out of 1,000, and the sums of its groups (Liu et al. 2023)."""

    # the end of the names of six kinds of question, 300 questions in all; formulas are another kind
    RECOGNITION = "Recognition"

    def score_one(self, question: Question, prediction: str) -> Parts:
        score = rules.contained(prediction, question.answers, question.tags["dataset"])
        kind = question.tags["question_type"]
        reading = kind.endswith(self.RECOGNITION) and not kind.startswith("Handwritten Mathematical")
        parts = {"score": score, f"score/{kind}": score}
        return parts | ({"score/Text Recognition": score} if reading else {})

    def compute(self, sums: Sums) -> dict[str, Any]:
        kinds = {kind: np.asarray(sums[f"score/{kind}"], dtype=float) for kind in find_kinds(sums, "score")}
        return {"ocrbench_accuracy": np.asarray(sums["score"]) / 1000} | kinds


class MMStar(Metric):
    """The mean over the finer kinds of six abilities of the fraction of right letters (Chen et al. 2024)."""

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        score = rules.letter_extracted(prediction, question.answers, question.tags.get("choices", "ABCD"))
        kind = f"{question.tags['category']}/{question.tags['l2_category']}"
        return {"score": score, f"score/{kind}": score, f"n/{kind}": 1.0}

    def compute(self, sums: Sums) -> dict[str, Any]:
        fine = {kind: divide(sums[f"score/{kind}"], sums[f"n/{kind}"]) for kind in find_kinds(sums, "n")}
        abilities = sorted({kind.partition("/")[0] for kind in fine})
        # lmms-eval joins finer kinds of the same name; in the data these belong to the same ability
        values = {"average": np.mean(list(fine.values()), axis=0)}
        for ability in abilities:
            of_it = [value for kind, value in fine.items() if kind.partition("/")[0] == ability]
            values[ability] = np.mean(of_it, axis=0)
        return values


class MME(Metric):
    """The sum over kinds of the fractions of right answers, and of images with both answers right, each times 100.

    Source: MME (Fu et al. 2023): two questions for each image, ten kinds of perception and four of cognition.
    """

    COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

    def score(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        rights = [
            float(rules.yes_or_no(prediction) == rules.get_yes_or_no(question.answers))
            for question, prediction in zip(questions, predictions, strict=True)
        ]
        pairs: dict[tuple[str, str], list[float]] = {}
        for question, right in zip(questions, rights, strict=True):
            pairs.setdefault(self.get_pair(question), []).append(right)
        scored = []
        for question, right in zip(questions, rights, strict=True):
            kind = question.tags["category"]
            parts = {"score": right, f"right/{kind}": right, f"n/{kind}": 1.0}
            pair = pairs.pop(self.get_pair(question), None)
            if pair is not None:  # the first answer of a pair, complete or cut by `limit`, has the part of the pair
                parts |= {f"both/{kind}": float(sum(pair) == 2), f"pictures/{kind}": 1.0}
            scored.append(parts)
        return scored

    @staticmethod
    def get_pair(question: Question) -> tuple[str, str]:
        return question.tags["category"], question.tags["question_id"]

    def compute(self, sums: Sums) -> dict[str, Any]:
        kinds = {
            kind: 100 * divide(sums[f"right/{kind}"], sums[f"n/{kind}"])
            + 100 * divide(sums[f"both/{kind}"], sums[f"pictures/{kind}"])
            for kind in find_kinds(sums, "n")
        }
        perception = [value for kind, value in kinds.items() if kind not in self.COGNITION]
        cognition = [value for kind, value in kinds.items() if kind in self.COGNITION]
        values = {"mme_perception_score": np.sum(perception, axis=0)} if perception else {}
        values |= {"mme_cognition_score": np.sum(cognition, axis=0)} if cognition else {}
        return values | kinds


class POPE(Metric):
    """Accuracy, precision, recall and F1 of "yes" to questions about the presence of objects (Li et al. 2023).

    An answer counts only if it is exactly "yes" or "no". `pope_yes_ratio` is lmms-eval's, the share among the right
    answers, the same for every model; `answered_yes` is the paper's, the fraction of "yes" among the predictions.
    """

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        said, right = prediction.lower().strip(), rules.get_yes_or_no(question.answers)
        return {
            "score": float(said == right),
            "n": 1.0,
            "said_yes": float(said == "yes"),
            "is_yes": float(right == "yes"),
            "true_yes": float(said == right == "yes"),
            "false_no": float(said == "no" and right == "yes"),
        }

    def compute(self, sums: Sums) -> dict[str, Any]:
        precision = np.nan_to_num(divide(sums["true_yes"], sums["said_yes"]))
        recall = np.nan_to_num(divide(sums["true_yes"], np.add(sums["true_yes"], sums["false_no"])))
        return {
            "pope_accuracy": divide(sums["score"], sums["n"]),
            "pope_precision": precision,
            "pope_recall": recall,
            "pope_f1_score": np.nan_to_num(divide(2 * precision * recall, precision + recall)),
            "pope_yes_ratio": divide(sums["is_yes"], sums["n"]),
            "answered_yes": divide(sums["said_yes"], sums["n"]),
        }


class Words(Metric):
    """Exactness, recall and precision of lists of words or phrases, separated by commas, in any order and case.

    Args:
        by: the tag with a question's kind, whose name precedes those of its values.
    """

    top = 1.0

    def __init__(self, by: str) -> None:
        self.by = by

    def score_one(self, question: Question, prediction: str) -> Parts:
        kind, right = question.tags[self.by], {answer.strip(" .").lower() for answer in question.answers}
        said = {part.strip(" .\n").lower() for part in prediction.split(",")} - {""}
        parts = {
            "exact": float(said == right),
            "both": len(said & right),
            "said": len(said),
            "right": len(right),
            "n": 1,
        }
        return {"score": parts["exact"]} | {f"{name}/{kind}": float(value) for name, value in parts.items()}

    def compute(self, sums: Sums) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for kind in find_kinds(sums, "n"):
            exact, both, said, right, n = (sums[f"{name}/{kind}"] for name in ("exact", "both", "said", "right", "n"))
            values |= {f"{kind}_exact": divide(exact, n), f"{kind}_recall": divide(both, right)}
            values[f"{kind}_precision"] = np.nan_to_num(divide(both, said))
        return values


class Boxes(Metric):
    """The fraction of boxes that overlap the right one by at least half, and the mean overlap (RefCOCOg).

    Boxes are (left, top, right, bottom) as shares of the image's sides; in a prediction they are the first four numbers
    in square brackets. Source: accuracy at an intersection over union of 0.5 (Mao et al. 2016), parsed as in lmms-eval.
    """

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        right = [float(value) for value in question.answers]
        if len(right) != 4:
            raise ValueError(f"a box is four numbers, not {len(right)}")
        overlap = rules.intersection_over_union(right, rules.parse_box(prediction))
        return {"score": float(overlap >= 0.5), "overlap": overlap, "n": 1.0}

    def compute(self, sums: Sums) -> dict[str, Any]:
        accuracy = divide(sums["score"], sums["n"])
        return {"refcoco_ACC@0.5": accuracy, "refcoco_IoU": divide(sums["overlap"], sums["n"])}


class Captions(Metric):
    """CIDEr (Vedantam et al. 2015): n-grams shared with human captions, weighted by rarity; the mean over images.

    The rarity of an n-gram is computed from the human captions of all images: with `limit` it is a different measure.
    The interval treats the rarities as fixed.

    Args:
        name: of the value.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def check_requirements(self) -> None:
        if find_spec("pycocoevalcap") is None:
            raise InputError("CIDEr needs pycocoevalcap: pip install 'cal_cli[caption]'")
        if shutil.which("java") is None:
            raise InputError(
                "CIDEr needs Java, with which pycocoevalcap splits captions into words, and there is no `java` on the "
                "PATH: install it (on Debian `apt install default-jre-headless`)"
            )

    def check_question(self, question: Question) -> None:
        """Accept any captions: to score one of them says little, and takes a second."""

    def score(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        self.check_requirements()
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

        tokenizer = PTBTokenizer()
        with tempfile.TemporaryFile("w+") as log, redirect_errors(log.fileno()):
            human = tokenizer.tokenize({n: [to_one_line(text) for text in q.answers] for n, q in enumerate(questions)})
            given = tokenizer.tokenize({n: [to_one_line(text)] for n, text in enumerate(predictions)})
            log.seek(0)
            if not len(human) == len(given) == len(questions):
                raise InputError(f"CIDEr: pycocoevalcap's Java program failed: {log.read().strip()[-200:]}")
        _, scores = Cider().compute_score(human, given)
        return [{"score": float(score), "n": 1.0} for score in scores]

    def compute(self, sums: Sums) -> dict[str, Any]:
        return {self.name: divide(sums["score"], sums["n"])}


@contextmanager
def redirect_errors(file: int) -> Iterator[None]:
    """Redirect the standard error of this process and of the programs it starts to a file."""
    sys.stderr.flush()
    before = os.dup(2)
    os.dup2(file, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


def to_one_line(caption: str) -> dict[str, str]:
    """Convert a caption for the tokenizer, which reads one line for each caption: a line break would shift the rest."""
    return {"caption": " ".join(caption.strip().splitlines())}


NAMES = {
    "attention": "attention_inside",
    "relevancy": "relevancy_inside",
    "on_picture": "attention_on_picture",
    "area": "area_inside",
    "projected": "projected_word_accuracy",
    "lens": "lens_word_accuracy",
}


class RegionLooks(Metric):
    """Means over regions; a prediction is what `measure_regions` returns for one, as JSON."""

    top = 1.0

    def score_one(self, question: Question, prediction: str) -> Parts:
        measured = json.loads(prediction)
        return {"score": measured["attention"], "n": 1.0, **measured}

    def compute(self, sums: Sums) -> dict[str, Any]:
        return {name: divide(sums[part], sums["n"]) for part, name in NAMES.items() if part in sums}
