"""The world as a data set: fixed by its seed, split without overlap, with the shares and the marks that it promises."""

import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cal_cli.data.validate import find_annotation_problem, find_problem
from cal_cli.runtime.errors import InputError
from cal_cli.toy.families import FAMILIES
from cal_cli.toy.families.objects import find_things
from cal_cli.toy.world import make_benchmark, make_scenes


def answers_of(entry):
    return [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]


def test_the_same_seed_gives_the_same_world_and_more_samples_change_none():
    few, many = make_scenes(n=20, seed=5), make_scenes(n=10**9, seed=5)  # drawn when they are read
    assert few.entries[:] == many.entries[:20]
    assert len(many.entries) == 10**9 and len(many.entries.drawn) == 20
    assert all(
        few[i]["image"] is None or few[i]["image"].tobytes() == many[i]["image"].tobytes() for i in range(len(few))
    )
    assert make_scenes(n=20, seed=6).entries[:] != few.entries[:]


@pytest.mark.parametrize("family", ["captions", "references"])
def test_train_and_test_share_no_scene_of_one_family(family):
    asked = make_benchmark(n=300, families=[family], grain=0.0).questions
    shown = {question.images()[0].tobytes() for question in asked}
    trained = make_scenes(n=2000, seed=0, text_only_share=0.0, families=[family], grain=0.0)
    assert not shown & {trained[index]["image"].tobytes() for index in range(2000)}


def test_captions_of_both_splits_are_of_different_scenes():
    train = {tuple(find_things(answers_of(entry)[0])) for entry in make_scenes(n=3000, families=["captions"]).entries}
    test = {tuple(find_things(q.answers[0])) for q in make_benchmark(n=512, families=["captions"]).questions}
    assert not train & test


def test_shares_are_kept():
    entries = make_scenes(n=4000, seed=2, text_only_share=0.25).entries
    text_only = sum("image" not in entry for entry in entries) / len(entries)
    assert abs(text_only - 0.25) < 0.03  # over four standard deviations
    counts = Counter(entry["family"] for entry in entries)
    total = sum(family.share for family in FAMILIES.values())
    for name, family in FAMILIES.items():
        assert abs(counts[name] / len(entries) - family.share / total) < 0.04


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0.0, 1.0, 5.0]))
def test_entries_are_valid_and_their_marks_are_words_of_the_answers(seed, irrelevant):
    for entry in make_scenes(n=30, seed=seed, irrelevant=irrelevant).entries:
        assert find_problem(entry) is None and find_annotation_problem(entry) is None
        texts = [turn["value"] for turn in entry["conversations"]]
        marked = [texts[turn][begin:end] for turn, begin, end in entry["correlated"]]
        assert marked and all(re.fullmatch(r"[\w/]+", word) for word in marked)
        assert not any(set("{}") & set(text) for text in texts)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 3.0, 5.0])
def test_captions_have_the_share_of_irrelevant_words_that_was_asked_for(share):
    plain = make_scenes(n=40, irrelevant=0.0, families=["captions"]).entries
    for entry, short in zip(make_scenes(n=40, irrelevant=share, families=["captions"]).entries, plain, strict=True):
        words, correlated = len(answers_of(entry)[0].split()), len(entry["correlated"])
        grammar = len(answers_of(short)[0].split()) - len(short["correlated"])
        assert words - correlated - grammar == pytest.approx(round(share * correlated), abs=6)
        assert find_things(answers_of(entry)[0]) == find_things(answers_of(short)[0])


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n": 0}, "data.n=0"),
        ({"n": 1, "split": "val"}, "train and test"),
        ({"n": 1, "text_only_share": 2.0}, "0 to 1"),
        ({"n": 1, "irrelevant": -1.0}, "0 to 20"),
        ({"n": 1, "grain": 1.5}, "0 to 1"),
        ({"n": 1, "families": ["caption"]}, "captions, questions, reading"),
        ({"n": 1, "families": []}, "once each"),
        ({"n": 1, "families": ["charts", "charts"]}, "once each"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(InputError, match=named):
        make_scenes(**options)
