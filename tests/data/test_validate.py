"""Marks of correlated words: checked, kept with their text under noise, and lost where a text changes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.data.noise import NoiseConfig, inject_noise
from cal_cli.data.noise_kinds import KINDS
from cal_cli.data.validate import find_problem, move_marks, normalize
from cal_cli.toy.world import make_scenes


def entry(**more):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a red ring"}]
    return {"id": "1", "image": "a.png", "conversations": turns, **more}


@pytest.mark.parametrize("marks", [None, [], [[1, 2, 5]], [[1, 2, 5], [1, 6, 10]]])
def test_valid_marks_pass(marks):
    assert find_problem(entry(correlated=marks)) is None


@pytest.mark.parametrize(
    "marks",
    ["red", [1, 2, 5], [[1, 2]], [[0, 2, 5]], [[1, 5, 5]], [[1, 2, 11]], [[2, 0, 1]], [[1, True, 5]], [[-1, 0, 1]]],
)
def test_invalid_marks_are_named(marks):
    assert "'correlated'" in find_problem(entry(correlated=marks))


def test_marks_follow_their_turns_when_a_first_answer_is_dropped():
    turns = [{"from": "gpt", "value": "hello"}, *entry()["conversations"]]
    kept = normalize({**entry(correlated=[[0, 0, 5], [2, 2, 5]]), "conversations": turns})
    assert kept["correlated"] == [[1, 2, 5]] and find_problem(kept) is None
    for wrong in ("red", [["a", 0, 1]], [[]], [3]):
        assert "'correlated'" in find_problem(normalize({**entry(correlated=wrong), "conversations": turns}))


@given(st.text("ab ", max_size=8), st.text("ab ", max_size=4), st.text("ab ", max_size=4), st.text("ab ", max_size=8))
def test_marks_that_stay_name_the_same_words(start, old, new, end):
    before, after = start + old + end, start + new + end
    marks = [[1, begin, begin + 1] for begin in range(len(before))] + [[3, 0, 1]]
    moved = move_marks(marks, 1, before, after)
    assert moved[-1] == [3, 0, 1]
    kept = [after[begin:finish] for turn, begin, finish in moved if turn == 1]
    assert len(kept) >= len(start) + len(end)
    # what comes before and after the change is there, in its order
    assert "".join(kept).startswith(start) and "".join(kept).endswith(end)


@pytest.mark.parametrize("kind", ["swap", *KINDS])
def test_under_noise_marks_are_those_of_the_text_that_an_entry_has(kind):
    clean = make_scenes(n=80, seed=1)
    noisy, changed = inject_noise(clean, NoiseConfig(0.5, 0, kind))
    sources = {change["index"]: change.get("donor_id") for change in changed}
    by_id = {one["id"]: one for one in clean.entries}
    for index, (before, after) in enumerate(zip(clean.entries, noisy.entries, strict=True)):
        assert find_problem(after) is None
        words = [after["conversations"][turn]["value"][begin:end] for turn, begin, end in after["correlated"]]
        origin = by_id[sources[index]] if sources.get(index) else before
        known = [origin["conversations"][turn]["value"][begin:end] for turn, begin, end in origin["correlated"]]
        if kind == "swap" or index not in sources:
            assert words == known
        else:
            remaining = iter(known)
            assert all(word in remaining for word in words)  # some of them, in their order


def test_exchanges_stay_within_a_family():
    clean = make_scenes(n=300, seed=2)
    _, changed = inject_noise(clean, NoiseConfig(0.5, 0))
    by_id = {one["id"]: one for one in clean.entries}
    shown = sum("image" in one for one in clean.entries)
    assert len(changed) == round(0.5 * shown)
    assert all(by_id[change["id"]]["family"] == by_id[change["donor_id"]]["family"] for change in changed)


@pytest.mark.parametrize("regions", [None, [], [[1, 2, 5, 0, 0, 3, 4.5]]])
def test_valid_regions_pass(regions):
    assert find_problem(entry(regions=regions)) is None


@pytest.mark.parametrize(
    "regions",
    [
        "red",
        [[1, 2, 5]],
        [[0, 2, 5, 0, 0, 1, 1]],
        [[1, 2, 11, 0, 0, 1, 1]],
        [[1, 2, 5, 3, 0, 3, 1]],
        [[1, 2, 5, 0, "0", 3, 1]],
        [[1, 2, 5, 0, 0, float("inf"), 1]],
    ],
)
def test_invalid_regions_are_named(regions):
    assert "'regions'" in find_problem(entry(regions=regions))


@pytest.mark.parametrize("kind", ["swap", *KINDS])
def test_a_changed_text_has_no_regions(kind):
    clean = make_scenes(n=60, seed=1, families=["captions"])
    noisy, changed = inject_noise(clean, NoiseConfig(0.5, 0, kind))
    of_changed = {change["index"] for change in changed}
    assert of_changed
    for index, (before, after) in enumerate(zip(clean.entries, noisy.entries, strict=True)):
        assert after.get("regions") == (None if index in of_changed else before.get("regions"))
