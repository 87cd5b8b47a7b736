"""The kind of each token's word, under every kind of noise."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from cal_cli.data.noise import NoiseConfig, inject_noise
from cal_cli.inspection.detection import compute_auc, describe_kinds
from cal_cli.inspection.tokens import make_token_table
from cal_cli.inspection.word_kinds import find_touched, find_truth
from cal_cli.objective import ContrastiveAlignmentLoss
from cal_cli.toy.scenes import make_scenes
from tests.cal import cal


def make_entry(marks):
    turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": "a red ring"}]
    return {"id": "1", "image": "a.png", "conversations": turns, "correlated": marks}


PIECES = [["a", " red", " ring", "</s>"]]


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
    (found,) = find_truth(make_entry([[1, 2, 5], [1, 6, 10]]), change, True, PIECES)
    assert [truth.kind for truth in found] == kinds
    assert [truth.is_noise for truth in found] == noise
    (unknown,) = find_truth(make_entry(None), None, False, PIECES)
    assert [tuple(truth) for truth in unknown] == [(None, None)] * 4


def test_tokens_that_do_not_spell_the_answer_are_unknown():
    assert find_touched(["a", "?"], "a red ring", [[2, 5]]) is None
    (found,) = find_truth(make_entry([[1, 2, 5]]), {"turn": 1, "spans": [[2, 5]]}, True, [["a", "?"]])
    assert [tuple(truth) for truth in found] == [(None, None)] * 2


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
    words = ("data.n=30", "noise.ratio=0.5", "output=a", "objective=posterior", "format=svg")
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
    assert "<svg" in (tmp_path / "a/heatmap.svg").read_text()
