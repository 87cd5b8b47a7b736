"""The token table, the page and the histogram, read back."""

import itertools
import json
import math
import re

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.data.noise import NoiseConfig, inject_noise
from cal_cli.inspection.pages import HeatmapSample, render_heatmap
from cal_cli.inspection.tokens import (
    Piece,
    RankedWord,
    Token,
    Word,
    describe_kinds,
    draw_histogram,
    find_touched,
    find_truths,
    join_words,
    make_token_table,
    rank_words,
)
from cal_cli.objective import ContrastiveAlignmentLoss, RuleLoss, contrast_logits
from cal_cli.objective.rules import ProbabilityPower, ProbabilityRatio
from cal_cli.statistics.bootstrap import compute_auc, estimate_auc_interval
from cal_cli.toy.world import make_scenes
from tests.cal import cal


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
    assert "not all about this image" in page
    assert "--logprob: rgba(230, 97, 1, 0.500)" in page  # half of the scale of 5
    assert "--logprob: rgba(50, 100, 220, 1.000)" in page  # beyond it, against the token
    assert "--weight: rgba(50, 100, 220, 0.750)" in page  # three quarters of the way from 1 to 0


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=12), st.lists(st.integers(-3, 3), min_size=1, max_size=12))
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


@pytest.mark.parametrize("names", [["delta"], ["of the image", "not of the image"], list("abc")])
def test_the_histogram_is_a_png(names):
    deltas = {name: np.array([0.0, 0.0, 7.0]) for name in names}
    assert draw_histogram(deltas, "t").startswith(b"\x89PNG")


def piece(text, delta=None, kind=None, special=False):
    if delta is None:
        return Piece(text, None)
    return Piece(text, Token((9.0, 3.0), (-1.0, -1.0 - delta), 1.0, kind, special))


def test_tokens_are_joined_to_words():
    pieces = [
        piece("what? "),
        *(
            piece("The", 0.5),
            piece(" vio", 1.0, "correlated"),
            piece("let", 2.0),
            piece(",", -1.0),
            piece(" don", 0.25),
        ),
        *(piece("'t", 0.25), piece(" -", 7.0), piece("</s>", 3.0, special=True)),
        *(piece("next "), piece("it", -0.5)),
    ]
    expected = [("the", 0.5, None), ("violet", 2.0, "correlated"), ("don't", 0.5, None), ("it", -0.5, None)]
    assert join_words(pieces) == [Word(text, pytest.approx(delta), kind) for text, delta, kind in expected]
    assert join_words([]) == []


def test_words_are_ranked_by_their_means_each_kind_apart():
    samples = [[piece("red", 2.0, "correlated"), piece(" a", -0.5)], [piece("red", -4.0, "contradicted")]] * 3
    samples += [[piece("red", 5.0, "correlated"), piece(" once", 9.0)]]
    visual, contradicted = rank_words(samples, least=2)
    assert [word[:3] for word in visual] == [("red", "correlated", 4)]
    assert visual[0].delta == pytest.approx((3 * 2 + 5) / 4)
    assert [word[:3] for word in contradicted] == [("red", "contradicted", 3), ("a", None, 3)]
    assert rank_words([], least=1) == [[], []]
    assert [word.text for word in rank_words(samples, least=1, size=1)[0]] == ["once"]


def make_entry(marks):
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a red ring"}]
    return {"id": "1", "image": "a.png", "conversations": turns, "correlated": marks}


def make_text(answer, pieces):
    """A batch of one sample whose answer is rendered after a prompt, in pieces."""
    text = f"ASK {answer}"
    ends = [4, *(4 + len("".join(pieces[: number + 1])) for number in range(len(pieces)))]
    offsets = torch.tensor([[[0, 4], *itertools.pairwise(ends)]])
    return {"text": [text], "offsets": offsets, "answer": torch.tensor([[-1] + [0] * len(pieces)])}


RENDERED = make_text("a red ring</s>", ["a", " red", " ring", "</s>"])


@pytest.mark.parametrize(
    ("change", "kinds", "noise"),
    [
        (None, ["irrelevant", "correlated", "correlated", "irrelevant"], [False] * 4),
        ({"donor_id": "2"}, ["irrelevant", "contradicted", "contradicted", "irrelevant"], [True] * 4),
        (
            {"turn": 1, "spans": [[2, 5]]},
            ["irrelevant", "contradicted", "correlated", "irrelevant"],
            [False, True, False, False],
        ),
        (
            {"turn": 1, "spans": [[10, 10]]},
            ["irrelevant", "correlated", "correlated", "contradicted"],
            [False, False, False, True],
        ),
    ],
)
def test_kinds_of_an_answer(change, kinds, noise):
    found = find_truths(make_entry([[1, 2, 5], [1, 6, 10]]), change or False, RENDERED, 0)
    assert list(found) == [1, 2, 3, 4]
    assert [truth.kind for truth in found.values()] == kinds
    assert [truth.is_noise for truth in found.values()] == noise
    unknown = find_truths(make_entry(None), None, RENDERED, 0)
    assert [tuple(truth) for truth in unknown.values()] == [(None, None)] * 4


def test_tokens_that_do_not_spell_the_answer_are_unknown():
    changed = make_text("a?", ["a", "?"])
    assert find_touched(changed, 0, 0, "a red ring", [[2, 5]]) is None
    found = find_truths(make_entry([[1, 2, 5]]), {"turn": 1, "spans": [[2, 5]]}, changed, 0)
    assert [tuple(truth) for truth in found.values()] == [(None, None)] * 2


@pytest.mark.parametrize("kind", ["swap", "attribute", "sentence"])
def test_the_table_spells_the_marked_words(model, processor, kind):
    data, changed = inject_noise(make_scenes(n=24, seed=4), NoiseConfig(0.5, 0, kind))
    noisy = {change["index"]: change for change in changed}
    table, pieces = make_token_table(model.eval(), processor, data, ContrastiveAlignmentLoss(), noisy, 8)
    rows = table.to_pylist()
    for index, entry in enumerate(data.entries):
        texts = [turn["value"] for turn in entry["conversations"]]
        marked = "".join(texts[turn][begin:end] for turn, begin, end in entry["correlated"])
        visual = [row for row in rows if row["sample_id"] == entry["id"] and row["kind"] != "irrelevant"]
        if kind == "swap":
            assert "".join(row["token"].strip() for row in visual) == marked.replace(" ", "")
            expected = "contradicted" if index in noisy else "correlated"
            assert {row["kind"] for row in visual} == {expected}
        elif index in noisy:
            change = noisy[index]
            wrong = texts[change["turn"]][slice(*change["spans"][0])]
            said = "".join(row["token"] for row in visual if row["kind"] == "contradicted")
            assert said.replace(" ", "") == wrong.replace(" ", "")
    shown = {piece.token.kind for sample in pieces for piece in sample if piece.token}
    assert shown == set(table["kind"].to_pylist())


def test_delta_is_a_detector_of_each_kind():
    delta = np.array([4.0, 3.0, 0.1, -0.1, 0.2, -3.0, -4.0, 9.0])
    kind = np.array([*["correlated"] * 2, *["irrelevant"] * 3, *["contradicted"] * 2, None])
    found = describe_kinds(delta, np.ones(8), kind, np.array([0, 0, 0, 1, 1, 1, 2, 2]))
    assert found["correlated"]["ci95"] is None  # of one sample
    assert [found[name]["tokens"] for name in ("correlated", "irrelevant", "contradicted")] == [2, 3, 2]
    assert all(one["auc"] == 1.0 for one in found.values())
    assert found["contradicted"]["delta"] == -3.5
    assert compute_auc(np.array([1.0, 1.0]), np.array([True, False])) == 0.5


def test_the_command_writes_and_shows_the_kinds(tmp_path):
    words = ("data.n=30", "noise.ratio=0.5", "output=a", "objective=posterior")
    said = cal("token-weight-dump", *words, folder=tmp_path).stdout
    kinds = json.loads((tmp_path / "a/kinds.json").read_text())
    table = pq.read_table(tmp_path / "a/tokens.parquet").to_pylist()
    shown = {entry["id"] for entry in make_scenes(n=30, seed=0).entries if "image" in entry}
    for name, found in kinds.items():
        assert found["tokens"] == sum(row["kind"] == name and row["sample_id"] in shown for row in table)
        low, high = found["ci95"]
        assert 0 <= low <= found["auc"] <= high <= 1 and name in said
    page = (tmp_path / "a/heatmap.html").read_text()
    assert 'class="token correlated"' in page and 'class="token contradicted"' in page and "<table>" in page


SCRIPTS = [
    "一只红色的圆环。它很大。",
    "café très élégant.",
    "a 😀 ring 👩\u200d👧 here.",
    "e\u0301te\u0301 combining.",
    "नमस्ते दुनिया।",
    "שלום עולם.",
]


@pytest.mark.parametrize("answer", SCRIPTS)
def test_characters_of_several_tokens_are_shown_whole(answer, model, processor, world):
    shown = next(entry for entry in world.entries if "image" in entry)
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
    entry = shown | {"conversations": turns, "correlated": [[1, 2, 5]]}
    data = world.replace(entries=[entry])
    table, (pieces,) = make_token_table(model, processor, data, ContrastiveAlignmentLoss(), noisy=None, batch_size=1)
    assert "".join(table["token"].to_pylist()).strip() == f"{answer}</s>"
    assert answer in "".join(piece.text for piece in pieces)
    # a token is correlated if one of its bytes is of a marked character: the end of each token, by counting bytes
    found = [row for row in table.to_pylist() if row["token_id"] != processor.tokenizer.eos_token_id]
    spelled = processor.tokenizer.convert_ids_to_tokens([row["token_id"] for row in found])
    begin = -len(b" ")
    for row, token in zip(found, spelled, strict=True):
        end = begin + len(token)  # a byte-level token has a character for each byte
        first, last = (len(answer[:place].encode()) for place in (2, 5))
        assert (row["kind"] == "correlated") == (begin < last and end > first)
        begin = end
    assert sum(piece.token is not None for piece in pieces) == len(table)  # so that words add up all differences
