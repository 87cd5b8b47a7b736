"""Estimates from judgements of a stratified random sample: sums over strata, with 95 % intervals."""

from dataclasses import dataclass

import numpy as np
from scipy import optimize
from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True)
class Strata:
    """Groups of items of which some, drawn at random within each group, were judged.

    Attributes:
        size: int [strata], the number of items.
        judged: int [strata], of which so many were judged.
        wrong: int [strata], of which so many are wrong.
        rate: float [strata], the fraction to assume where none was judged.
    """

    size: np.ndarray
    judged: np.ndarray
    wrong: np.ndarray
    rate: np.ndarray

    def bound_totals(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Estimate the number of wrong items of each stratum, with its 95 % limits: three times float64 [strata].

        The limits are exact (Clopper and Pearson), with the correction for a finite population, and within what the
        judgements leave open.
        A stratum of which all items were judged is known; of one without a judgement, nothing is.
        """
        judged = np.maximum(self.judged, 1)
        share = np.where(self.judged > 0, self.wrong / judged, self.rate)
        low, high = proportion_confint(self.wrong, judged, method="beta")
        low, high = np.where(self.judged > 0, [low, high], [[0.0], [1.0]])
        left = self.size - self.judged
        shrink = np.sqrt(np.where(self.judged > 0, left / np.maximum(self.size - 1, 1), 1.0))
        least, most = self.wrong, self.wrong + left
        return (
            self.size * share,
            np.maximum(self.size * (share - (share - low) * shrink), least),
            np.minimum(self.size * (share + (high - share) * shrink), most),
        )

    def estimate_sum(self, coefficients: np.ndarray) -> tuple[float, float, float]:
        """Estimate a weighted sum of the numbers of wrong items, float [strata], with its 95 % limits.

        The limits of the strata are combined by the method of variance estimates recovery (MOVER; Zou and Donner 2008,
        Statistics in Medicine 27:1693), which keeps their asymmetry: a stratum without a wrong item may have some.
        Those of strata without a judgement, about which chance says nothing, are added up.
        """
        total, low, high = self.bound_totals()
        value = float(coefficients @ total)
        below = coefficients * (total - np.where(coefficients > 0, low, high))
        above = coefficients * (np.where(coefficients > 0, high, low) - total)
        half = [np.linalg.norm(side[self.judged > 0]) + side[self.judged == 0].sum() for side in (below, above)]
        return value, value - float(half[0]), value + float(half[1])

    def estimate_share(self, chosen: np.ndarray) -> dict[str, float | list[float] | None]:
        """Estimate the fraction of all wrong items that is in the `chosen` strata (bool [strata]): `value` and `ci95`.

        A limit is the fraction f at which the interval of (1 - f) x chosen - f x others begins or ceases to include 0.
        The value is None if no item seems to be wrong.
        """
        (total, _, _), ones = self.bound_totals(), chosen.astype(float)
        value = float(total[chosen].sum() / total.sum()) if total.sum() else None

        def find(side: int) -> float:
            def edge(share: float) -> float:
                return self.estimate_sum(ones - share)[side]

            ends = edge(0.0), edge(1.0)
            return float(optimize.brentq(edge, 0.0, 1.0)) if ends[0] > 0 > ends[1] else float(ends[0] > 0)

        return {"value": value, "ci95": [find(1), find(2)]}
