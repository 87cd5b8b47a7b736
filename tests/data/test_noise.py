"""Exchanged captions: exactly as many as asked, none its own, nothing else touched."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.data.noise import swap_conversations
from cal_cli.runtime.errors import InputError


def entries_of(kinds):
    """Entries with (True) and without (False) an image, each with a conversation of its own."""
    entries = []
    for number, with_image in enumerate(kinds):
        entry = {"id": f"s{number}", "conversations": [{"from": "human", "value": str(number)}]}
        if with_image:
            entry["image"] = f"{number}.png"
        entries.append(entry)
    return entries


@given(st.lists(st.booleans(), min_size=1, max_size=60), st.floats(0, 1), st.integers(0, 99))
def test_exactly_the_share_is_exchanged_and_nothing_else(kinds, ratio, seed):
    entries = entries_of(kinds)
    n = sum(kinds)
    count = round(ratio * n)
    if ratio > 0 and (n < 2 or count == 1):
        with pytest.raises(InputError, match="at least 2"):
            swap_conversations(entries, ratio, seed)
        return
    noisy, changed = swap_conversations(entries, ratio, seed)
    moved = [i for i in range(len(entries)) if noisy[i]["conversations"] != entries[i]["conversations"]]
    assert len(moved) == len(changed) == count
    assert [exchange["index"] for exchange in changed] == moved
    for exchange in changed:
        assert kinds[exchange["index"]]
        assert exchange["donor_id"] != exchange["id"]
        donor = next(entry for entry in entries if entry["id"] == exchange["donor_id"])
        assert noisy[exchange["index"]]["conversations"] == donor["conversations"]
    for before, after in zip(entries, noisy, strict=True):
        assert before["id"] == after["id"]
        assert before.get("image") == after.get("image")
    told = [Counter(entry["conversations"][0]["value"] for entry in side) for side in (entries, noisy)]
    assert told[0] == told[1]
    assert (noisy, changed) == swap_conversations(entries, ratio, seed)


def test_seeds_choose_different_samples():
    entries = entries_of([True] * 50)
    chosen = {tuple(e["index"] for e in swap_conversations(entries, 0.5, seed)[1]) for seed in range(5)}
    assert len(chosen) == 5


def test_samples_with_several_images_are_exchanged_among_their_like_alone():
    several = [{**entry, "image": ["a.png", "b.png"]} for entry in entries_of([True] * 4)]
    noisy, changed = swap_conversations(several, 1.0, 0)
    assert len(changed) == 4 and all(entry["image"] == ["a.png", "b.png"] for entry in noisy)
    with pytest.raises(InputError, match="samples show 1 or 2 images"):
        swap_conversations(several + entries_of([True] * 4), 0.5, 0)
    assert swap_conversations(several + entries_of([True] * 4), 0.0, 0)[1] == []


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_0_and_1_is_an_error(ratio):
    with pytest.raises(InputError, match="from 0 to 1"):
        swap_conversations(entries_of([True] * 4), ratio, 0)
