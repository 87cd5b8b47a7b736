"""Scores with 95 % intervals."""

import re

import numpy as np
from scipy import stats

from cal_cli.data.scenes import COLOURS, PLACES, SHAPES


def proportion(scores: list[float]) -> dict:
    """The mean of independent right-or-wrong scores with Wilson's interval (scipy's `binomtest`)."""
    interval = stats.binomtest(int(sum(scores)), len(scores)).proportion_ci(0.95, method="wilson")
    return {"value": sum(scores) / len(scores), "ci95": [float(interval.low), float(interval.high)]}


def grouped_mean(scores: list[float], groups: list[str]) -> dict:
    """The mean of right-or-wrong scores of which those about one picture belong together.

    The interval is Student's, over the pictures' means; where those are all alike it says nothing, and Wilson's
    interval over as many pictures stands in.
    """
    names = sorted(set(groups))
    place = {name: number for number, name in enumerate(names)}
    index = [place[group] for group in groups]
    means = np.bincount(index, weights=scores) / np.bincount(index)
    if np.ptp(means) == 0 and means[0] in (0, 1):
        return proportion(means.tolist())
    low, high = stats.t.interval(0.95, len(means) - 1, loc=np.mean(means), scale=stats.sem(means))
    return {"value": float(np.mean(scores)), "ci95": [max(0.0, float(low)), min(1.0, float(high))]}


def exact_match(prediction: str, answers: list[str]) -> float:
    """1 if the prediction is one of the answers, letter case and outer space apart; else 0."""
    return float(prediction.strip().lower() in [answer.strip().lower() for answer in answers])


def scene_match(prediction: str, answers: list[str]) -> float:
    """1 if a caption names exactly the objects of the scene, each with its colour, shape and place; else 0."""
    return float(any(objects_in(prediction) == objects_in(answer) for answer in answers))


def objects_in(caption: str) -> list[tuple[str, ...]]:
    """The (colour, shape, place) triples that a caption names, sorted."""
    pattern = rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) in the ({'|'.join(PLACES)})"
    return sorted(re.findall(pattern, caption.lower()))
