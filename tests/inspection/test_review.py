"""The samples to judge, and estimates from simulated reviewers on data whose errors are known."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.inspection.review import Design, Review, find_cut, read_verdicts
from cal_cli.runtime.errors import InputError


@given(st.integers(1, 5000), st.integers(1, 300), st.integers(0, 9))
def test_a_design_judges_so_many_and_all_of_the_worst(samples, review, seed):
    review = min(samples, review)
    design, ranked = Design("loss", samples, review, seed), np.random.default_rng(1).permutation(samples)
    assigned = design.assign(ranked)
    chosen = assigned[assigned["turn"] >= 0]
    assert sorted(chosen["turn"]) == list(range(review))
    assert (assigned["turn"][assigned["stratum"] == 0] >= 0).all() and assigned["index"].tolist() == ranked.tolist()
    assert assigned["probability"].sum() == pytest.approx(review)  # Horvitz and Thompson
    for stratum, rows in assigned.groupby("stratum"):
        assert rows["probability"].iloc[0] == pytest.approx((rows["turn"] >= 0).mean()), stratum
    assert assigned.equals(design.assign(ranked))


def test_every_sample_of_a_stratum_is_chosen_as_often():
    counts = sum((Design("loss", 300, 40, seed).assign(np.arange(300))["turn"] >= 0).to_numpy() for seed in range(2000))
    probability = Design("loss", 300, 40, 0).assign(np.arange(300))["probability"].to_numpy()
    error = np.sqrt(2000 * probability * (1 - probability))
    assert (np.abs(counts - 2000 * probability) <= 5 * error + 1e-9).all()


def make_world(seed, samples=3000, share=0.1):
    """Which samples are wrong, and their places by a ranking that finds most of these."""
    generator = np.random.default_rng(seed)
    wrong = generator.random(samples) < share
    return wrong, np.argsort(-(generator.normal(size=samples) + 2 * wrong))


def judge(wrong, ranked, seed, review=100, unsure=()):
    design = Design("loss", len(ranked), review, seed)
    assigned = design.assign(ranked)
    places = assigned["index"][assigned["turn"] >= 0].tolist()
    verdicts = {n: "unsure" if n in unsure else "wrong" if wrong[n] else "right" for n in places}
    return Review(assigned, verdicts)


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_intervals_hold_the_truth_over_200_reviews(share):
    held = {"total": 0, "precision": 0, "recall": 0}
    wrong, ranked = make_world(0, share=share)
    totals = []
    for seed in range(200):
        review = judge(wrong, ranked, seed)
        total, cut = review.estimate_total(), review.describe_cut(ranked, 200)
        truth = {"precision": wrong[ranked[:200]].mean(), "recall": wrong[ranked[:200]].sum() / wrong.sum()}
        totals.append(total["value"])
        held["total"] += total["ci95"][0] <= wrong.sum() <= total["ci95"][1]
        for name, value in truth.items():
            held[name] += cut[name]["ci95"][0] <= value <= cut[name]["ci95"][1]
    assert all(count >= 184 for count in held.values()), held  # 190 expected; fewer than 184 has a probability of 2 %
    assert np.mean(totals) == pytest.approx(wrong.sum(), abs=4 * np.std(totals) / np.sqrt(200))  # unbiased


def test_another_ranking_may_be_described_by_the_same_verdicts():
    wrong, ranked = make_world(1)
    other = np.argsort(-(np.random.default_rng(2).normal(size=len(wrong)) + 3 * wrong))
    review = judge(wrong, ranked, 0)
    for cut in review.list_cuts(other, 77):
        truth = wrong[other[: cut["cut"]]].mean()
        assert cut["precision"]["ci95"][0] - 0.05 <= truth <= cut["precision"]["ci95"][1] + 0.05
    assert [cut["cut"] for cut in review.list_cuts(other, 77)] == [10, 30, 77, 100, 300, 1000]


def test_the_calibrated_probability_falls_along_the_ranking_and_keeps_verdicts():
    wrong, ranked = make_world(3)
    review = judge(wrong, ranked, 0, review=200)
    calibrated = review.calibrate(ranked)
    free = np.array([place not in review.wrong for place in ranked])
    assert (np.diff(calibrated[free]) <= 1e-12).all()
    assert all(calibrated[rank] == wrong[place] for rank, place in enumerate(ranked) if place in review.wrong)
    assert calibrated[free].sum() == pytest.approx(wrong[ranked[free]].sum(), rel=0.3)
    cut = find_cut(calibrated, 0.8)
    assert calibrated[:cut].mean() >= 0.8 > calibrated[: cut + 1].mean()
    assert wrong[ranked[:cut]].mean() > 0.65
    assert find_cut(np.array([0.4, 0.3]), 0.5) == 0


def test_calibration_weighs_a_verdict_by_the_samples_that_it_stands_for():
    assigned = pd.DataFrame({"index": range(10), "stratum": [0] * 2 + [1] * 8, "turn": [0, 1, 2, *[-1] * 6, 3]})
    calibrated = Review(assigned, {0: "wrong", 1: "right", 2: "wrong", 9: "right"}).calibrate(np.arange(10))
    # the verdicts on 1 and 2, which stand for one and four samples, are out of order: both become (0 + 4 x 1) / 5
    assert calibrated == pytest.approx([1, 0, 1, *(0.8 * (9 - rank) / 7 for rank in range(3, 9)), 0])


def test_verdicts_decide_about_their_samples():
    wrong, ranked = make_world(4, samples=300)
    review = judge(wrong, ranked, 0, review=60)
    dropped = review.settle(ranked, 30)
    assert {n for n, is_wrong in review.wrong.items() if is_wrong} <= dropped
    assert not {n for n, is_wrong in review.wrong.items() if not is_wrong} & dropped
    assert set(ranked[:30]) - set(review.wrong) <= dropped


def test_unsure_samples_count_as_not_judged():
    wrong, ranked = make_world(5, samples=50)
    review = judge(wrong, ranked, 0, review=50, unsure=(3, 4))
    total = review.estimate_total()
    known = wrong.sum() - wrong[[3, 4]].sum()
    assert review.unsure == 2 and total["ci95"][0] >= known and total["ci95"][1] <= known + 2


def test_verdicts_on_others_are_refused():
    _, ranked = make_world(6)
    assigned = Design("loss", len(ranked), 10, 0).assign(ranked)
    other = int(assigned["index"][assigned["turn"] < 0].iloc[0])
    with pytest.raises(InputError, match=f"sample {other} is not among the 10"):
        Review(assigned, {other: "wrong"})
    with pytest.raises(InputError, match="no sample is judged right or wrong yet"):
        Review(assigned, {}).calibrate(ranked)


DOCUMENT = {"rank": "loss", "samples": 9, "review": 2, "seed": 0}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "not a file that audit.html saved"),
        (json.dumps({"verdicts": []}), "not a file that audit.html saved: it has no 'rank'"),
        (json.dumps(DOCUMENT | {"verdicts": [{"index": 1, "verdict": "right"}]}), "not a file that audit.html saved"),
        (json.dumps(DOCUMENT | {"verdicts": [{"index": 1, "id": "a", "verdict": "good"}]}), "not 'good'"),
        (json.dumps(DOCUMENT | {"verdicts": [{"index": 1, "id": "a", "verdict": "wrong"}] * 2}), "two verdicts"),
    ],
)
def test_files_that_the_page_did_not_write_are_refused(tmp_path, content, message):
    (tmp_path / "verdicts.json").write_text(content)
    with pytest.raises(InputError, match=message):
        read_verdicts(tmp_path / "verdicts.json")
    with pytest.raises(InputError, match="there is no such file"):
        read_verdicts(tmp_path / "other.json")
