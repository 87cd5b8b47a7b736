"""The token table, the page and the histogram, read back."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.inspection.detection import compute_auc, estimate_auc_interval
from cal_cli.inspection.heatmap import HeatmapSample, render_heatmap
from cal_cli.inspection.heatmap_figure import break_lines, draw_heatmap
from cal_cli.inspection.histogram import draw_histogram
from cal_cli.inspection.tokens import Piece, Token, make_token_table
from cal_cli.inspection.words import RankedWord
from cal_cli.objective import ContrastiveAlignmentLoss, RuleLoss, contrast_logits
from cal_cli.objective.rules import ProbabilityPower, ProbabilityRatio


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


def test_any_rule_gives_the_weights(model, processor, world):
    model.eval()
    objective = RuleLoss(ProbabilityPower())
    table, _ = make_token_table(model, processor, world, objective, noisy=None, batch_size=5)
    assert table.schema.metadata == {b"score": b"logprob"}
    expected = np.exp(table["logprob_with_image"].to_numpy()) ** 0.7
    assert np.allclose(table["weight"].to_numpy(), expected, atol=1e-5)
    difference = table["logprob_with_image"].to_numpy() - table["logprob_without_image"].to_numpy()
    assert np.allclose(difference, table["delta"].to_numpy(), atol=1e-5)
    batch = Collator(processor)([world[index] for index in range(len(world))])
    assert np.allclose(difference, contrast_logits(model, batch, "logprob").delta.numpy(), atol=1e-4)


def test_all_scores_come_from_one_pass_over_the_text(model, processor, world):
    model.eval()
    lengths = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, given: lengths.append(given["inputs_embeds"].shape[1]), with_kwargs=True
    )
    make_token_table(model, processor, world, RuleLoss(ProbabilityRatio()), noisy=None, batch_size=len(world))
    hook.remove()
    assert len(lengths) == 2 and lengths[1] < lengths[0]


def make_token(delta, weight=1.75, kind=None):
    return Token((1.0 + delta, 1.0), (math.log(0.5), math.log(0.5) - delta), weight, kind)


def test_the_page_escapes_text_and_needs_no_network():
    hostile = "<script>alert(1)</script>"
    pieces = [Piece(hostile, None), Piece('"><img src=x onerror=1>', make_token(2.5))]
    sample = HeatmapSample("<b>id</b>", [Image.new("RGB", (4, 4))], {"m": pieces}, True)
    words = [[RankedWord(hostile, "correlated", 3, 1.0)], []]
    other = HeatmapSample("two", [], {"m": [Piece("x", make_token(-9.0, 0.25, "contradicted"))]}, False)
    page = render_heatmap([sample, other], "a & b", words)
    assert page.count("<script") == 1 and hostile not in page
    assert "<img src=x" not in page
    assert "<b>id</b>" not in page
    assert "a &amp; b" in page
    assert not re.search(r"https?://|@import|<link", page)
    assert "data:image/png;base64," in page
    assert "probability 0.5 with the image, 0.041 without: log-probability +2.50, raw logit +2.50, weight 1.75" in page
    assert "not all about this picture" in page
    assert "--logprob: rgba(230, 97, 1, 0.500)" in page  # half of the scale of 5
    assert "--logprob: rgba(50, 100, 220, 1.000)" in page  # beyond it, against the token
    assert "--weight: rgba(50, 100, 220, 0.750)" in page  # three quarters of the way from 1 to 0


@pytest.mark.parametrize(("file_format", "start"), [("pdf", b"%PDF"), ("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_the_figure_has_every_format_and_the_same_bytes_again(file_format, start):
    pieces = [Piece("what?\n", None), Piece("a $x_1$ & <b>", make_token(3.0)), Piece(" long" * 60, make_token(-3.0))]
    samples = [
        HeatmapSample("one", [Image.new("L", (4, 4))], {"m": pieces}, None),
        HeatmapSample("two", [], {"m": pieces, "<other>": pieces}, None),
    ]
    drawn = draw_heatmap(samples, file_format)
    assert drawn.startswith(start) and draw_heatmap(samples, file_format) == drawn


@given(st.lists(st.tuples(st.text("ab \n", min_size=1, max_size=9), st.booleans()), max_size=12), st.integers(1, 8))
def test_lines_hold_every_character_once(texts, columns):
    pieces = [Piece(text, make_token(number) if seen else None) for number, (text, seen) in enumerate(texts)]
    lines = break_lines(pieces, columns)
    assert all(sum(len(piece.text) for piece in line) <= columns for line in lines)
    characters = [(c, piece.token) for piece in pieces for c in piece.text if c != "\n"]
    assert [(c, piece.token) for line in lines for piece in line for c in piece.text] == characters


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
