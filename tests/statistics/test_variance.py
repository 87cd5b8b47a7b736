"""Variance components against statsmodels' ANOVA table, and against effects of known size."""

import itertools

import numpy as np
import pandas as pd
import pytest
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

from cal_cli.statistics.variance import estimate_variance_shares


def make_design(levels, repeats=1):
    rows = list(itertools.product(*(range(level) for level in levels))) * repeats
    return pd.DataFrame(rows, columns=[f"f{number}" for number in range(len(levels))])


def test_components_are_those_of_the_anova_table():
    design = make_design((3, 4, 2))
    y = np.random.default_rng(0).normal(size=len(design)) + 2.0 * design["f1"].to_numpy()
    table = anova_lm(ols("y ~ C(f0) + C(f1) + C(f2)", design.assign(y=y)).fit())
    rest = table["mean_sq"]["Residual"]
    parts = {
        name: max(table["mean_sq"][f"C({name})"] - rest, 0) / (len(y) / design[name].nunique()) for name in design
    } | {"rest": rest}
    found = estimate_variance_shares(y, design)
    assert found == pytest.approx({name: part / sum(parts.values()) for name, part in parts.items()})


def test_the_shares_are_those_that_the_values_were_made_of():
    random, design = np.random.default_rng(1), make_design((40, 40))
    y = 2 * random.normal(size=40)[design["f0"]] + random.normal(size=40)[design["f1"]] + random.normal(size=1600)
    found = estimate_variance_shares(y, design)
    assert found["f0"] == pytest.approx(4 / 6, abs=0.15) and found["rest"] == pytest.approx(1 / 6, abs=0.1)
    assert sum(found.values()) == pytest.approx(1)


def test_what_cannot_be_separated_is_none():
    design = make_design((3, 3))
    y = np.arange(9.0)
    assert estimate_variance_shares(y[:8], design[:8]) is None  # not balanced
    assert estimate_variance_shares(y, design.assign(f1=0)) is None  # one level
    assert estimate_variance_shares(np.ones(9), design) is None
    assert estimate_variance_shares(y[:3], design[["f0"]][:3]) is None  # nothing is left for the rest
