"""Which share of a metric's variance comes from which seed: variance components of a balanced design."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

REST = "rest"  # interactions of the factors, and whatever else


def estimate_variance_shares(values: Sequence[float], factors: pd.DataFrame) -> dict[str, float] | None:
    """Estimate the share of the variance that each factor causes, as random main effects.

    With n values, a factor of k levels and mean squares MS, the component of the factor is (MS of the factor - MS of
    the rest) / (n / k), at least 0; that of the rest is its mean square. These are the method-of-moments (ANOVA)
    estimators of a balanced design (Searle, Casella and McCulloch, Variance Components, chapter 4).

    Args:
        values: one for each run.
        factors: a column for each factor, a row for each run; every combination of levels occurs equally often.

    Returns:
        By factor, and for `rest`, the share of the sum of all components; None if the design is not balanced, a factor
        has a single level, nothing is left for the rest, or all values are equal.
    """
    y, names = np.asarray(values, dtype=float), list(factors)
    counts = factors.value_counts()
    levels = [factors[name].nunique() for name in names]
    freedom = len(y) - 1 - sum(level - 1 for level in levels)
    balanced = len(counts) == np.prod(levels) and counts.nunique() == 1
    if not names or min(levels) < 2 or not balanced or freedom < 1 or np.ptp(y) == 0:
        return None
    squares = {}
    for name, level in zip(names, levels, strict=True):
        means = pd.Series(y).groupby(factors[name].to_numpy()).mean()
        squares[name] = len(y) / level * float(((means - y.mean()) ** 2).sum())
    rest = max(float(((y - y.mean()) ** 2).sum()) - sum(squares.values()), 0.0) / freedom
    components = {
        name: max(squares[name] / (level - 1) - rest, 0.0) / (len(y) / level)
        for name, level in zip(names, levels, strict=True)
    } | {REST: rest}
    total = sum(components.values())
    return {name: component / total for name, component in components.items()} if total else None
