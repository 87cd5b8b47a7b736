"""Metrics of a benchmark: what each answer adds to them, and what they are when that is summed.

Each metric splits an answer's score into parts (numbers that can be added up over questions) and says how its values
follow from their sums. So one bootstrap serves them all. The names and scales of the values are lmms-eval's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from hydra.utils import get_object

from cal_cli.errors import InputError
from cal_cli.evaluation import answers as rules
from cal_cli.evaluation.questions import Question

Parts = dict[str, float]
Sums = Mapping[str, np.ndarray]


class Metric:
    """How the answers to a benchmark's questions are scored; a metric has `values`, and `part` or `parts`.

    Attributes:
        top: the most that each value can be, where all are means of scores from 0; else None.
    """

    top: float | None = None

    def ready(self) -> None:
        """Raise InputError if something that scoring needs is not installed."""

    def parts(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        """What each answer adds to the metric's sums; `score` among them is the answer's own."""
        pairs = zip(questions, predictions, strict=True)
        return [self.part(question, prediction) for question, prediction in pairs]

    def part(self, question: Question, prediction: str) -> Parts:
        """What one answer adds, where that depends on no other."""
        raise NotImplementedError

    def values(self, sums: Sums) -> dict[str, Any]:
        """The metric's values by name, the first of them the benchmark's headline.

        Args:
            sums: of each part over the questions, arrays of any one shape; parts that no question has are missing.
        """
        raise NotImplementedError


def share(part: Any, whole: Any) -> np.ndarray:
    """`part / whole`, nan where there is nothing to share."""
    part, whole = np.asarray(part, dtype=float), np.asarray(whole, dtype=float)
    return np.divide(part, whole, out=np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan), where=whole != 0)


def kinds_in(sums: Sums, part: str) -> list[str]:
    """The kinds for which there is a part `<part>/<kind>`, in the order of their names."""
    return sorted(name.partition("/")[2] for name in sums if name.startswith(f"{part}/"))


def rule_named(name: str) -> Callable[..., float]:
    """A function of `cal_cli.evaluation.answers`, or any other by its dotted path.

    Raises:
        InputError: there is none.
    """
    if hasattr(rules, name):
        return getattr(rules, name)
    try:
        return get_object(name)
    except Exception as error:  # Hydra wraps whatever importing it raises
        raise InputError(
            f"benchmark.metric.rule={name}: neither a rule of cal_cli.evaluation.answers nor a function's dotted path"
        ) from error


class Mean(Metric):
    """The mean of a rule's scores, over all questions and over those of each kind.

    Args:
        rule: of `cal_cli.evaluation.answers`, or a function's dotted path: takes a prediction and the answers.
        name: of the mean over all questions.
        scale: by which it is multiplied.
        given: tags of a question that the rule takes as keywords.
        by: the tag that names a question's kind; None: no kinds.
        names: of the means by kind; a kind that is not listed has its own name.
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
        self.rule, self.name, self.scale, self.top = rule_named(rule), name, scale, scale
        self.given, self.by, self.names = list(given or ()), by, dict(names or {})

    def part(self, question: Question, prediction: str) -> Parts:
        keywords = {name: question.tags[name] for name in self.given}
        score = float(self.rule(prediction, question.answers, **keywords))
        parts = {"score": score, "n": 1.0}
        if self.by is not None:
            kind = self.names.get(question.tags[self.by], question.tags[self.by])
            parts |= {f"score/{kind}": score, f"n/{kind}": 1.0}
        return parts

    def values(self, sums: Sums) -> dict[str, Any]:
        values = {self.name: share(sums["score"], sums["n"]) * self.scale}
        kinds = {kind: share(sums[f"score/{kind}"], sums[f"n/{kind}"]) * self.scale for kind in kinds_in(sums, "n")}
        return values | kinds


class OCRBench(Metric):
    """Answers contained in predictions, out of 1,000, and the sums of its groups (Liu et al. 2023)."""

    RECOGNITION = "Recognition"  # ends the names of six kinds of question, 300 in all; formulas are a kind of their own

    def part(self, question: Question, prediction: str) -> Parts:
        score = rules.contained(prediction, question.answers, question.tags["dataset"])
        kind = question.tags["question_type"]
        reading = kind.endswith(self.RECOGNITION) and not kind.startswith("Handwritten Mathematical")
        parts = {"score": score, f"score/{kind}": score}
        return parts | ({"score/Text Recognition": score} if reading else {})

    def values(self, sums: Sums) -> dict[str, Any]:
        kinds = {kind: np.asarray(sums[f"score/{kind}"], dtype=float) for kind in kinds_in(sums, "score")}
        return {"ocrbench_accuracy": np.asarray(sums["score"]) / 1000} | kinds


class MMStar(Metric):
    """The mean over six abilities' finer kinds, each the share of letters that are right (Chen et al. 2024)."""

    top = 1.0

    def part(self, question: Question, prediction: str) -> Parts:
        score = rules.letter_extracted(prediction, question.answers)
        kind = f"{question.tags['category']}/{question.tags['l2_category']}"
        return {"score": score, f"score/{kind}": score, f"n/{kind}": 1.0}

    def values(self, sums: Sums) -> dict[str, Any]:
        fine = {kind: share(sums[f"score/{kind}"], sums[f"n/{kind}"]) for kind in kinds_in(sums, "n")}
        abilities = sorted({kind.partition("/")[0] for kind in fine})
        # lmms-eval joins finer kinds of one name, which are the same ability's in the data
        values = {"average": np.mean(list(fine.values()), axis=0)}
        for ability in abilities:
            of_it = [value for kind, value in fine.items() if kind.partition("/")[0] == ability]
            values[ability] = np.mean(of_it, axis=0)
        return values


class MME(Metric):
    """The sum over kinds of the share of right answers and the share of pictures with both right, each times 100.

    Source: MME (Fu et al. 2023): two questions a picture, ten kinds of perception and four of cognition.
    """

    COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")

    def parts(self, questions: Sequence[Question], predictions: Sequence[str]) -> list[Parts]:
        pairs: dict[tuple[str, str], list[float]] = {}
        for question, prediction in zip(questions, predictions, strict=True):
            right = float(rules.yes_or_no(prediction) == question.answers[0].lower().strip().replace(".", ""))
            pairs.setdefault(self.pair(question), []).append(right)
        # of a pair, or of one that `limit` has cut, the first answer carries what both are worth together
        given: dict[tuple[str, str], list[float]] = {pair: list(scores) for pair, scores in pairs.items()}
        found = []
        for question in questions:
            pair = self.pair(question)
            kind, scores = pair[0], pairs[pair]
            first = len(given[pair]) == len(scores)
            right = given[pair].pop(0)
            parts = {"score": right, f"right/{kind}": right, f"n/{kind}": 1.0}
            if first:
                parts |= {f"both/{kind}": float(sum(scores) == 2), f"pictures/{kind}": 1.0}
            found.append(parts)
        return found

    @staticmethod
    def pair(question: Question) -> tuple[str, str]:
        return question.tags["category"], question.tags["question_id"]

    def values(self, sums: Sums) -> dict[str, Any]:
        kinds = {
            kind: 100 * share(sums[f"right/{kind}"], sums[f"n/{kind}"])
            + 100 * share(sums[f"both/{kind}"], sums[f"pictures/{kind}"])
            for kind in kinds_in(sums, "n")
        }
        perception = [value for kind, value in kinds.items() if kind not in self.COGNITION]
        cognition = [value for kind, value in kinds.items() if kind in self.COGNITION]
        values = {"mme_perception_score": np.sum(perception, axis=0)} if perception else {}
        values |= {"mme_cognition_score": np.sum(cognition, axis=0)} if cognition else {}
        return values | kinds


class POPE(Metric):
    """Accuracy, precision, recall and F1 of "yes" on the presence of objects (Li et al. 2023).

    An answer counts only if it is "yes" or "no" and nothing else. `pope_yes_ratio` is lmms-eval's, which is that of the
    right answers and the same for every model; `answered_yes` is the paper's, the share of "yes" among the predictions.
    """

    top = 1.0

    def part(self, question: Question, prediction: str) -> Parts:
        said, right = prediction.lower().strip(), question.answers[0].lower().strip()
        return {
            "score": float(said == right),
            "n": 1.0,
            "said_yes": float(said == "yes"),
            "is_yes": float(right == "yes"),
            "true_yes": float(said == right == "yes"),
            "false_no": float(said == "no" and right == "yes"),
        }

    def values(self, sums: Sums) -> dict[str, Any]:
        precision = np.nan_to_num(share(sums["true_yes"], sums["said_yes"]))
        recall = np.nan_to_num(share(sums["true_yes"], np.add(sums["true_yes"], sums["false_no"])))
        return {
            "pope_accuracy": share(sums["score"], sums["n"]),
            "pope_precision": precision,
            "pope_recall": recall,
            "pope_f1_score": np.nan_to_num(share(2 * precision * recall, precision + recall)),
            "pope_yes_ratio": share(sums["is_yes"], sums["n"]),
            "answered_yes": share(sums["said_yes"], sums["n"]),
        }


class Boxes(Metric):
    """The share of boxes that overlap the right one by at least half, and the mean overlap (RefCOCOg).

    Boxes are (left, top, right, bottom) as shares of the picture's sides, in a prediction the first four numbers in
    square brackets. Source: accuracy at an intersection over union of 0.5 (Mao et al. 2016), with lmms-eval's parsing.
    """

    top = 1.0

    def part(self, question: Question, prediction: str) -> Parts:
        right = [float(value) for value in question.answers]
        overlap = rules.intersection_over_union(right, rules.box_in(prediction))
        return {"score": float(overlap >= 0.5), "overlap": overlap, "n": 1.0}

    def values(self, sums: Sums) -> dict[str, Any]:
        accuracy = share(sums["score"], sums["n"])
        return {"refcoco_ACC@0.5": accuracy, "refcoco_IoU": share(sums["overlap"], sums["n"])}
