"""The token table, the page and the histogram, read back."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.inspection.detection import compute_auc, estimate_auc_interval
from cal_cli.inspection.heatmap import HeatmapSample, render_heatmap
from cal_cli.inspection.histogram import draw_histogram
from cal_cli.inspection.tokens import Piece, make_token_table
from cal_cli.objective import ContrastiveAlignmentLoss, contrast_logits


def test_the_table_holds_the_contrast_of_every_supervised_token(model, processor, world):
    model.eval()
    objective = ContrastiveAlignmentLoss()
    table, pieces = make_token_table(model, processor, world, objective, noisy={2: {}, 5: {}}, batch_size=5)
    rows = table.to_pylist()
    batch = Collator(processor)([world[index] for index in range(len(world))])
    contrast, output = contrast_logits(model, batch), objective(model, batch)
    assert [row["token_id"] for row in rows] == contrast.labels.tolist()
    assert [row["position"] for row in rows] == contrast.position.tolist()
    assert np.allclose(table["delta"].to_numpy(), contrast.delta.numpy(), atol=1e-4)
    assert np.allclose(table["weight"].to_numpy(), output.weights.numpy(), atol=1e-4)
    difference = table["logit_with_image"].to_numpy() - table["logit_without_image"].to_numpy()
    assert np.allclose(difference, table["delta"].to_numpy(), atol=1e-5)
    noisy = {world.entries[2]["id"], world.entries[5]["id"]}
    assert all(row["is_noise"] == (row["sample_id"] in noisy) for row in rows)
    assert table.schema.metadata == {b"score": b"logit"}
    for entry, sample_pieces in zip(world.entries, pieces, strict=True):
        text = "".join(piece.text for piece in sample_pieces)
        for turn in entry["conversations"]:
            assert turn["value"].replace("<image>", "") in text


def test_is_noise_is_null_where_it_is_not_known(model, processor, world):
    table, _ = make_token_table(model, processor, world, ContrastiveAlignmentLoss(), noisy=None, batch_size=12)
    assert table["is_noise"].null_count == len(table)


def test_the_page_escapes_text_and_needs_no_network():
    pieces = [Piece("<script>alert(1)</script>", None, None), Piece('"><img src=x onerror=1>', 2.5, 1.75)]
    sample = HeatmapSample("<b>id</b>", [Image.new("RGB", (4, 4))], pieces, True)
    page = render_heatmap([sample, HeatmapSample("two", [], [Piece("x", -9.0, 1.0)], False)], "a & b", "logit")
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>id</b>" not in page
    assert "a &amp; b" in page
    assert not re.search(r"https?://|@import|<link", page)
    assert "data:image/png;base64," in page
    assert "delta +2.50, weight 1.75" in page
    assert "not all about this picture" in page
    assert "rgba(230, 97, 1, 0.500)" in page  # half of the scale of 5
    assert "rgba(50, 100, 220, 1.000)" in page  # beyond it, against the token


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
    st.lists(st.integers(-3, 3), min_size=1, max_size=12),
)
def test_auc_counts_pairs(clean, noise):
    delta, is_noise = np.array(clean + noise, float), np.array([False] * len(clean) + [True] * len(noise))
    pairs = [1.0 if n < c else 0.5 if n == c else 0.0 for c in clean for n in noise]
    assert compute_auc(-delta, is_noise) == pytest.approx(np.mean(pairs))


def test_the_interval_of_auc_holds_it_and_narrows_with_more_samples():
    generator = np.random.default_rng(0)
    widths = []
    for samples in (20, 200):
        sample = np.repeat(np.arange(samples), 5)
        is_noise = sample % 2 == 0
        delta = generator.normal(size=len(sample)) - is_noise
        low, high = estimate_auc_interval(-delta, is_noise, sample, resamples=200)
        assert low < compute_auc(-delta, is_noise) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


@pytest.mark.parametrize("noise", [None, np.array([True, False, True])])
def test_the_histogram_is_a_png(noise):
    assert draw_histogram(np.array([0.0, 0.0, 7.0]), noise, "t").startswith(b"\x89PNG")
