"""A person's verdicts on a sample of an audit: which samples to judge, and what the verdicts say about all of them.

The worst samples of the ranking are all judged, and of the others a random sample in strata. Every estimate is by the
design of this sample (Horvitz and Thompson), and therefore holds whatever the model of the audit believes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize

from cal_cli.runtime.errors import InputError
from cal_cli.statistics.shares import Strata

VERDICTS = ("right", "wrong", "unsure")
TOP = 0.2  # fraction of the samples to judge that are the worst of the ranking
LEAST = 3  # samples of a stratum that are judged
GROWTH = 4  # each stratum of the ranking ends at so many times the rank at which it begins
PRECISIONS = (0.5, 0.8, 0.9, 0.95)  # for which the cut is reported
CUTS = (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1_000_000)  # for which precision is reported


@dataclass(frozen=True)
class Design:
    """How samples were chosen to be judged: from which ranking of how many samples, how many of them, and the seed."""

    rank: str
    samples: int
    review: int
    seed: int

    def find_strata(self) -> tuple[np.ndarray, np.ndarray]:
        """Find the first rank (from 0) of each stratum, with the end of the last, and how many are judged in each.

        All samples of the first stratum are judged. The others share the rest in proportion to the cube root of their
        sizes: a compromise between the total, for which large strata matter, and precision at a cut.
        """
        if not self.review:
            return np.array([0, self.samples]), np.array([0])
        top = self.samples if self.review == self.samples else max(round(TOP * self.review), 1)
        edges, most = [0, top], 1 + max((self.review - top) // LEAST, 1)
        while edges[-1] < self.samples:
            edges.append(min(edges[-1] * GROWTH, self.samples) if len(edges) < most else self.samples)
        if len(edges) > 3 and edges[-1] - edges[-2] < edges[-2] - edges[-3]:
            del edges[-2]  # the last stratum is not smaller than the one before
        size = np.diff(edges)
        judged = np.where(np.arange(len(size)) == 0, top, 0)
        while judged.sum() < self.review:  # one more where the most samples, by the cube root, wait for each judged one
            open_strata = judged < size
            judged[np.argmax(np.where(open_strata, size ** (1 / 3) / np.maximum(judged, 0.01), -1.0))] += 1
        return np.array(edges), judged

    def assign(self, ranked: np.ndarray) -> pd.DataFrame:
        """Choose samples by their ranking, int [samples], the places of all samples, the worst first.

        Returns a row for each sample in the order of `ranked`: `index` (its place), `stratum`, `probability` (of being
        chosen), and `turn`, its turn in the random order of the chosen ones, from 0; -1 for the others.
        """
        edges, judged = self.find_strata()
        generator = np.random.default_rng(self.seed)
        chosen = np.concatenate(
            [
                begin + generator.permutation(end - begin)[:n]
                for begin, end, n in zip(edges, edges[1:], judged, strict=False)
            ]
        )
        stratum = np.repeat(np.arange(len(judged)), np.diff(edges))
        turn = np.full(len(ranked), -1)
        turn[generator.permutation(chosen)] = np.arange(len(chosen))
        probability = (judged / np.diff(edges))[stratum]
        return pd.DataFrame({"index": ranked, "stratum": stratum, "probability": probability, "turn": turn})


def read_verdicts(path: Path) -> tuple[Design, list[dict[str, Any]]]:
    """Read a `verdicts.json` of an audit's page: the design of its sample, and the verdicts.

    Raises InputError if there is no such file, or it is not one that the page wrote.
    """
    if not path.is_file():
        raise InputError(f"verdicts={path}: there is no such file; the page audit.html saves it with its button")
    try:
        document = json.loads(path.read_text())
        design = Design(**{name: document[name] for name in ("rank", "samples", "review", "seed")})
        judged = [verdict for verdict in document["verdicts"] if verdict["verdict"] is not None]
        wrong = {verdict["verdict"] for verdict in judged} - set(VERDICTS)
        named = [(int(verdict["index"]), str(verdict["id"])) for verdict in judged]
    except (ValueError, KeyError, TypeError) as error:
        problem = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise InputError(f"verdicts={path}: not a file that audit.html saved: {problem}") from error
    if wrong:
        raise InputError(f"verdicts={path}: a verdict is {', '.join(VERDICTS)} or null, not {sorted(wrong)[0]!r}")
    if len(set(named)) < len(named):
        raise InputError(f"verdicts={path}: has two verdicts on one sample")
    return design, judged


class Review:
    """Verdicts on the samples that a design chose, and estimates for all samples.

    Args:
        assigned: of `Design.assign`, a row for each sample.
        verdicts: the verdict on each judged sample, by its place.

    Attributes:
        wrong: bool, by the place of each sample judged right or wrong. Those judged unsure count as not judged.
        unsure: the number of those.

    Raises InputError if there is a verdict on a sample that was not chosen.
    """

    def __init__(self, assigned: pd.DataFrame, verdicts: Mapping[int, str]) -> None:
        chosen = set(assigned["index"][assigned["turn"] >= 0])
        if strange := sorted(set(verdicts) - chosen):
            raise InputError(
                f"verdicts: sample {strange[0]} is not among the {len(chosen)} that this audit chose to judge: give "
                "the verdicts on this audit, with its data, checkpoint and clip= or score_column="
            )
        self.assigned = assigned
        self.wrong = {place: verdict == "wrong" for place, verdict in verdicts.items() if verdict != "unsure"}
        self.unsure = len(verdicts) - len(self.wrong)
        self.stratum = assigned["stratum"].to_numpy()
        index = assigned["index"]
        self.is_judged = index.isin(self.wrong.keys()).to_numpy()
        self.is_wrong = index.isin([place for place, wrong in self.wrong.items() if wrong]).to_numpy()

    def count(self, chosen: np.ndarray) -> tuple[Strata, np.ndarray]:
        """Count the samples of each stratum that are chosen (bool [samples]), and those that are not.

        Within both parts of a stratum, the judged samples are a random sample. Returns the parts, and which are chosen.
        """
        number, part = self.stratum.max() + 1, self.stratum * 2 + chosen
        size, judged, wrong = (
            np.bincount(part[of], minlength=2 * number)
            for of in (np.ones_like(chosen), self.is_judged, self.is_judged & self.is_wrong)
        )
        whole = judged.reshape(number, 2).sum(axis=1), wrong.reshape(number, 2).sum(axis=1)
        overall = wrong.sum() / max(judged.sum(), 1)
        rate = np.where(whole[0] > 0, whole[1] / np.maximum(whole[0], 1), overall)
        return Strata(size, judged, wrong, np.repeat(rate, 2)), np.tile([False, True], number)

    def estimate_total(self) -> dict[str, Any]:
        """Estimate the number of wrong samples: `value`, `ci95` and `n`, the number of all samples."""
        strata, _ = self.count(np.ones(len(self.stratum), dtype=bool))
        value, low, high = strata.estimate_sum(np.ones(len(strata.size)))
        return {"value": value, "ci95": [low, high], "n": len(self.stratum)}

    def describe_cut(self, ranked: np.ndarray, cut: int) -> dict[str, Any]:
        """Describe the `cut` worst samples of a ranking, int [samples], the places of all samples.

        Returns:
            `cut`; `precision`, the fraction of them that is wrong; and `recall`, the fraction of all wrong samples
            that is among them: each `value` and `ci95`.
        """
        strata, chosen = self.count(self.assigned["index"].isin(ranked[:cut]).to_numpy())
        value, low, high = (number / cut for number in strata.estimate_sum(chosen.astype(float)))
        return {"cut": cut, "precision": {"value": value, "ci95": [low, high]}, "recall": strata.estimate_share(chosen)}

    def list_cuts(self, ranked: np.ndarray, *more: int) -> list[dict[str, Any]]:
        """Describe several cuts of a ranking, and `more`; see `describe_cut`."""
        return [self.describe_cut(ranked, cut) for cut in sorted({*CUTS, *more}) if 0 < cut < len(ranked)]

    def settle(self, ranked: np.ndarray, cut: int) -> set[int]:
        """Return the `cut` worst samples of a ranking, without those judged right, and all that are judged wrong."""
        right = {place for place, wrong in self.wrong.items() if not wrong}
        return (set(ranked[:cut].tolist()) - right) | (set(self.wrong) - right)

    def describe(self, ranked: np.ndarray, calibrated: np.ndarray, cut: int) -> dict[str, Any]:
        """Describe what the verdicts say: their numbers, the total, and cuts of the ranking, `cut` among them.

        `for_precision` has the cut that each of `PRECISIONS` needs; see `find_cut`.
        """
        return {
            "judged": len(self.wrong),
            "wrong": sum(self.wrong.values()),
            "unsure": self.unsure,
            "total": self.estimate_total(),
            "for_precision": [{"precision": wanted, "cut": find_cut(calibrated, wanted)} for wanted in PRECISIONS],
            "cuts": self.list_cuts(ranked, cut),
        }

    def calibrate(self, ranked: np.ndarray) -> np.ndarray:
        """Estimate the probability that each sample of a ranking is wrong, float64 [samples], in the ranking's order.

        It never rises along the ranking (isotonic regression, scipy's, each verdict weighted by the inverse of the
        probability that its sample was judged), is interpolated between judged samples, and is 0 or 1 for these.

        Raises InputError if no sample was judged right or wrong.
        """
        if not self.wrong:
            raise InputError("verdicts: no sample is judged right or wrong yet")
        strata, _ = self.count(np.zeros(len(self.stratum), dtype=bool))
        inverse = (strata.size / np.maximum(strata.judged, 1))[::2]
        weight = dict(zip(self.assigned["index"], inverse[self.stratum], strict=True))
        ranks = np.array([rank for rank, place in enumerate(ranked.tolist()) if place in self.wrong])
        wrong = np.array([self.wrong[place] for place in ranked[ranks].tolist()], dtype=float)
        weights = np.array([weight[place] for place in ranked[ranks].tolist()])
        fitted = optimize.isotonic_regression(wrong, weights=weights, increasing=False).x
        calibrated = np.interp(np.arange(len(ranked)), ranks, fitted)
        calibrated[ranks] = wrong
        return calibrated


def find_cut(calibrated: np.ndarray, precision: float) -> int:
    """Find the largest number of worst samples of which a fraction `precision` is expected to be wrong.

    `calibrated` is the probability of each sample in the order of the ranking, float [samples].
    """
    expected = np.cumsum(calibrated) / np.arange(1, len(calibrated) + 1)
    return int(np.flatnonzero(expected >= precision).max(initial=-1)) + 1
