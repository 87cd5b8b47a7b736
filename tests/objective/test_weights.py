"""Clamp and pooling against plain Python."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.objective import token_weights
from cal_cli.objective.weights import pool_flat

deltas = st.lists(st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=9), min_size=1, max_size=5)


def flat(samples):
    return [delta for sample in samples for delta in sample]


windows = st.sampled_from([1, 3, 5, 9])


@given(deltas, windows, st.floats(0, 2), st.floats(2, 6))
def test_pooling_stays_within_each_sample(samples, window, alpha, beta):
    sample_index = torch.tensor([number for number, sample in enumerate(samples) for _ in sample])
    weights = token_weights(torch.tensor(flat(samples)), sample_index, alpha, beta, window)
    expected = []
    for sample in samples:
        clamped = [min(max(delta, alpha), beta) for delta in sample]
        for place in range(len(sample)):
            near = clamped[max(place - window // 2, 0) : place + window // 2 + 1]
            expected.append(sum(near) / len(near))
    torch.testing.assert_close(weights, torch.tensor(expected), atol=1e-5, rtol=1e-5)


@given(deltas, windows)
def test_weights_keep_within_the_bounds(samples, window):
    sample_index = torch.tensor([number for number, sample in enumerate(samples) for _ in sample])
    weights = token_weights(torch.tensor(flat(samples)), sample_index, window=window)
    assert weights.min() >= 1 - 1e-5
    assert weights.max() <= 5 + 1e-5


def test_the_example_of_the_docstring():
    weights = token_weights(torch.tensor([0.0, 3.0, 9.0]), torch.tensor([0, 0, 0]))
    assert weights.tolist() == [2.0, 3.0, 4.0]


def test_samples_without_an_image_weigh_1():
    delta, index = torch.tensor([0.0, 0.0, 4.0]), torch.tensor([0, 0, 1])
    weights = token_weights(delta, index, alpha=0.0, has_image=torch.tensor([False, False, True]))
    assert weights.tolist() == [1.0, 1.0, 4.0]


@given(st.lists(st.floats(0, 5, width=32), min_size=1, max_size=20), windows)
def test_flat_pooling_counts_every_neighbour_but_the_ends(values, window):
    pooled = pool_flat(torch.tensor(values), torch.arange(len(values)), len(values), window)
    reach = window // 2
    near = [values[max(i - reach, 0) : i + reach + 1] for i in range(len(values))]
    torch.testing.assert_close(pooled, torch.tensor([sum(v) / len(v) for v in near]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", [{"window": 4}, {"window": -1}, {"alpha": 6.0}])
def test_wrong_options_raise(options):
    with pytest.raises(ValueError):
        token_weights(torch.zeros(1), torch.zeros(1, dtype=torch.long), **options)
