"""The audit's numbers against those of single samples, brute force and definitions; its page read back."""

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.inspection.audit import (
    Auditor,
    add_delta,
    collate_with_hashes,
    find_part,
    find_stretch,
    hash_images,
    list_parts,
    read_parts,
    summarize_audit,
    summarize_samples,
    summarize_sentences,
)
from cal_cli.inspection.detectors import describe_detector, draw_detectors, rank_samples, trace_detector
from cal_cli.inspection.pages import PAGE_LENGTH, AuditedSample, Run, make_turns, render_audit
from cal_cli.objective import contrast_logits
from cal_cli.statistics.bootstrap import compute_auc


@pytest.fixture(scope="module")
def tokens(random_model, world, tmp_path_factory):
    """The tokens of the world, audited in batches of three."""
    model, processor = random_model
    folder, parts = tmp_path_factory.mktemp("parts"), list_parts(world)
    auditor = Auditor(model.eval(), Collator(processor), batch_size=3, workers=0)
    for number, places in enumerate(parts):
        auditor.write_part(world, places, find_part(folder, number))
    return pd.concat([add_delta(part) for part in read_parts(folder, len(parts))])


def test_every_sample_with_an_image_has_its_own_contrast(tokens, random_model, world):
    model, processor = random_model
    places = [place for place, entry in enumerate(world.entries) if "image" in entry]
    assert tokens["index"].drop_duplicates().tolist() == places and 0 < len(places) < len(world)
    for place, rows in tokens.groupby("index"):
        alone = contrast_logits(model, Collator(processor)([world[place]]), "logprob")
        assert rows["position"].tolist() == alone.position.tolist()
        assert np.allclose(rows["logprob_with_image"], alone.with_image.numpy(), atol=1e-4)
        assert np.allclose(rows["delta"], alone.delta.numpy(), atol=1e-4)
        assert set(rows["sample_id"]) == {world.entries[place]["id"]}


def test_sentences_spell_the_answers(tokens, world):
    sentences = summarize_sentences(tokens)
    assert sentences["evidence"].sum() == pytest.approx(tokens["delta"].sum(), abs=1e-3)
    for place, rows in sentences.groupby("index"):
        answers = [turn["value"] for turn in world.entries[place]["conversations"] if turn["from"] == "gpt"]
        for number, answer in enumerate(answers):
            texts = rows["text"][rows["turn"] == number]
            assert "".join(" ".join(texts).split()) == "".join(answer.split())
            assert len(texts) == max(len(re.findall(r"\.(?= |$)", answer)), 1)


def test_a_sample_is_the_sum_of_its_tokens(tokens):
    samples = summarize_samples(tokens).set_index("index")
    by_sample = tokens.groupby("index")
    assert np.allclose(samples["evidence"], by_sample["delta"].sum(), atol=1e-4)
    assert np.allclose(samples["loss"], -by_sample["logprob_with_image"].mean(), atol=1e-4)
    assert samples["tokens"].tolist() == by_sample.size().tolist()
    assert (samples["contradiction"] >= -samples["evidence"].clip(upper=0) - 1e-4).all()


def test_an_audit_estimates_shares_and_ranks(tokens):
    summary = summarize_audit([pa.Table.from_pandas(tokens.drop(columns="delta"), preserve_index=False)])
    assert 0 <= summary.shares["samples"]["value"] <= 1
    assert summary.shares["sentences"]["n"] == len(summarize_sentences(tokens))
    assert rank_samples(summary.samples, "contradiction")["contradiction"].is_monotonic_decreasing
    ranked = rank_samples(summary.samples, "evidence")
    assert ranked["evidence"].is_monotonic_increasing and ranked["p_mismatch"].is_monotonic_decreasing


def test_an_audit_of_nothing_is_refused(tokens):
    whole = pa.Table.from_pandas(tokens.drop(columns="delta"), preserve_index=False)
    with pytest.raises(ValueError, match="no sample could be audited"):
        summarize_audit([whole[:0]])
    assert len(summarize_audit([whole[:0], whole]).samples) == tokens["index"].nunique()


@given(st.lists(st.floats(-5, 5), max_size=12).map(np.array))
def test_the_stretch_is_the_smallest_sum(delta):
    smallest, begin, end = find_stretch(delta)
    sums = [delta[i:j].sum() for i in range(len(delta) + 1) for j in range(i, len(delta) + 1)]
    assert smallest == pytest.approx(min(sums), abs=1e-9)
    assert delta[begin:end].sum() == pytest.approx(smallest, abs=1e-9)


VALUES = st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=2, max_size=20).filter(
    lambda rows: len({positive for _, positive in rows}) == 2
)


@given(VALUES)
def test_the_curves_are_those_of_every_threshold(rows):
    evidence, positive = np.array([row[0] for row in rows], float), np.array([row[1] for row in rows])
    false, recall, precision = trace_detector(evidence, positive)
    expected = []
    for threshold in sorted(set(evidence), reverse=True):
        chosen = evidence >= threshold
        expected.append((chosen[~positive].mean(), chosen[positive].mean(), positive[chosen].mean()))
    assert np.allclose(np.transpose([false, recall, precision]), expected)
    assert np.trapezoid([0, *recall], [0, *false]) == pytest.approx(compute_auc(evidence, positive))


def test_average_precision_by_hand():
    """Ranked wrong, right, wrong: precision 1 for half of the recall, 2/3 for the other half."""
    found = describe_detector(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, True, False]))
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2) and found["auc"] == 0.75


def test_the_curves_are_a_png():
    drawn = draw_detectors({"one": np.arange(6.0), "two": -np.arange(6.0)}, np.arange(6) % 2 == 0)
    assert drawn.startswith(b"\x89PNG")


def test_the_page_has_the_whole_text_and_marks_what_is_contradicted(tokens, world):
    for place, rows in tokens.groupby("index"):
        smallest, begin, end = find_stretch(rows["delta"].to_numpy())
        turns = make_turns(world.entries[place], rows, begin, end)
        spoken = world.entries[place]["conversations"]
        assert [question for question, _ in turns] == [
            turn["value"].replace("<image>\n", "") for turn in spoken if turn["from"] == "human"
        ]
        for (_, runs), turn in zip(turns, [turn for turn in spoken if turn["from"] == "gpt"], strict=True):
            assert "".join(run.text for run in runs).strip() == turn["value"]
        assert any(run.in_stretch for _, runs in turns for run in runs) == (smallest < 0)


def make_sample(text, images=1):
    turns = [(text, [Run(text, 0, False), Run(text, 3, True)])]
    numbers = {"rank": 1, "evidence": -1.0, "contradiction": 5.0, "p_mismatch": 0.7, "loss": 2.0, "is_noise": True}
    judged = {"place": 3, "turn": -1, "stratum": 0, "probability": 0.5, "verdict": None, "listed": True}
    row = SimpleNamespace(sample_id=text, text_repeats=1, image_texts=1, **numbers, **judged)
    return AuditedSample([Image.new("RGBA", (999, 20))] * images, turns, row)


def test_the_page_escapes_text_and_needs_no_network():
    hostile = '</span><script>alert(1)</script><img src=x onerror="alert(1)">'
    page = render_audit([make_sample(hostile)], hostile, [hostile])
    assert page.count("<script") == 1 and "<img src=x" not in page and hostile not in page
    assert not re.search(r"https?://|@import|<link", page)
    assert "data:image/jpeg;base64," in page and 'data-mismatch="0.7000"' in page and "l3 stretch" in page


def test_the_page_ends_at_its_size():
    read = []

    def many():
        while True:
            read.append(make_sample("x" * 100_000))
            yield read[-1]

    assert PAGE_LENGTH < len(render_audit(many(), "t", [])) < 1.2 * PAGE_LENGTH
    assert len(read) < 20


def test_sentences_end_after_the_last_token_of_their_mark(random_model, world, tmp_path):
    model, processor = random_model
    shown = next(entry for entry in world.entries if "image" in entry)
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "一只红色的圆环。它很大。"}]
    data = world.replace(entries=[shown | {"conversations": turns}])
    Auditor(model.eval(), Collator(processor), batch_size=1, workers=0).write_part(data, [0], tmp_path / "part.parquet")
    rows = pd.read_parquet(tmp_path / "part.parquet")
    assert len(rows) > 2 * len("一只红色的圆环。它很大。")  # of several tokens each
    texts = ["".join(group["token"]).strip() for _, group in rows[~rows["special"]].groupby("sentence")]
    assert texts == ["一只红色的圆环。", "它很大。"]
    assert rows["sentence"].nunique() == 2


def test_equal_images_have_equal_hashes_whatever_their_names(processor, world):
    first, second = [n for n, entry in enumerate(world.entries) if "image" in entry][:2]
    data = world.replace(replaces_bad=False)
    copy = {**data[first], "place": 100, "image": data[first]["image"].copy()}
    several = {**data[first], "place": 101, "image": [data[first]["image"], data[second]["image"]]}
    _, hashes = collate_with_hashes(Collator(processor), [data[first], data[second], copy])
    assert hashes[first] == hashes[100] != hashes[second] and len(hashes) == 3
    wider = {**data[first], "place": 102, "image": data[first]["image"].resize((32, 128))}
    assert len({hash_images([one["image"]]) for one in (data[first], wider)} | {hash_images(several["image"])}) == 3
