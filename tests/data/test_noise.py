"""Exchanged captions: exactly as many as asked, none its own, nothing else touched."""

import itertools
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cal_cli.data.exchange import exchange
from cal_cli.data.noise import (
    NoiseConfig,
    describe_changes,
    drop_images,
    inject_noise,
    make_manifest,
    order_by_words,
    swap_conversations,
)
from cal_cli.runtime.errors import InputError
from cal_cli.toy.world import make_scenes
from tests.cal import cal


def entries_of(kinds):
    """Entries with (True) and without (False) an image, each with a conversation of its own."""
    entries = []
    for number, with_image in enumerate(kinds):
        entry = {"id": f"s{number}", "conversations": [{"from": "gpt", "value": str(number)}]}
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
    assert [one["index"] for one in changed] == moved
    for one in changed:
        assert kinds[one["index"]]
        assert one["donor_id"] != one["id"]
        donor = next(entry for entry in entries if entry["id"] == one["donor_id"])
        assert noisy[one["index"]]["conversations"] == donor["conversations"]
    for before, after in zip(entries, noisy, strict=True):
        assert before["id"] == after["id"]
        assert before.get("image") == after.get("image")
    told = [Counter(entry["conversations"][0]["value"] for entry in side) for side in (entries, noisy)]
    assert told[0] == told[1]
    assert (noisy, changed) == swap_conversations(entries, ratio, seed)


def test_weights_go_with_their_texts():
    entries = entries_of([True] * 6)
    for number in range(3):
        entries[number]["loss_weights"] = [number / 10]
    noisy, changed = swap_conversations(entries, 1.0, 0)
    assert len(changed) == 6
    for entry in noisy:
        assert entry.get("loss_weights") == entries[int(entry["conversations"][0]["value"])].get("loss_weights")


def test_seeds_choose_different_samples():
    entries = entries_of([True] * 50)
    chosen = {tuple(e["index"] for e in swap_conversations(entries, 0.5, seed)[1]) for seed in range(5)}
    assert len(chosen) == 5


def test_samples_with_several_images_are_exchanged_among_their_like_alone():
    several = [{**entry, "image": [f"{n}a.png", f"{n}b.png"]} for n, entry in enumerate(entries_of([True] * 4))]
    noisy, changed = swap_conversations(several, 1.0, 0)
    assert len(changed) == 4 and [entry["image"] for entry in noisy] == [entry["image"] for entry in several]
    single = [
        {**entry, "conversations": [{"from": "gpt", "value": f"of one, {n}"}]}
        for n, entry in enumerate(entries_of([True] * 5))
    ]
    mixed = several + single
    for ratio in (0.5, 1.0):
        noisy, changed = swap_conversations(mixed, ratio, 0)
        assert len(changed) == round(ratio * 9)
        for before, after in zip(mixed, noisy, strict=True):
            assert after["conversations"][0]["value"].startswith("of one") == (before in single)
    assert swap_conversations(mixed, 0.0, 0)[1] == []


def of(pictures, texts):
    """Entries about pictures, each with an answer."""
    return [
        {
            "id": f"s{n}",
            "image": f"{one}.png",
            "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}],
        }
        for n, (one, text) in enumerate(zip(pictures, texts, strict=True))
    ]


def find_unchanged(entries, noisy, changed):
    """The changed samples that have a text of their own picture, or their own text."""
    texts = {}
    for entry in entries:
        texts.setdefault(entry["image"], set()).add(entry["conversations"][-1]["value"])
    return [
        one
        for one in changed
        if noisy[one["index"]]["conversations"][-1]["value"] in texts[noisy[one["index"]]["image"]]
    ]


@pytest.mark.parametrize("ratio", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_no_caption_comes_from_the_same_picture(ratio, seed):
    entries = of([n // 5 for n in range(20)], [f"caption {n}" for n in range(20)])
    noisy, changed = swap_conversations(entries, ratio, seed)
    assert len(changed) == round(ratio * 20) and not find_unchanged(entries, noisy, changed)
    assert describe_changes(entries, NoiseConfig(ratio, seed), changed) is None


@pytest.mark.parametrize("seed", range(5))
def test_no_answer_stays_the_same_if_there_are_others(seed):
    entries = of(range(20), ["yes", "no"] * 10)
    noisy, changed = swap_conversations(entries, 1.0, seed)
    assert len(changed) == 20 and not find_unchanged(entries, noisy, changed)


@pytest.mark.parametrize(("texts", "possible"), [(["yes"] * 15 + ["no"] * 5, 10), (["yes"] * 19 + [" Yes"], 0)])
def test_what_cannot_be_exchanged_is_kept_and_said(texts, possible):
    entries = of(range(20), texts)
    if not possible:
        with pytest.raises(InputError, match="no conversations can be swapped"):
            swap_conversations(entries, 1.0, 0)
        return
    noisy, changed = swap_conversations(entries, 1.0, 0)
    assert len(changed) == possible and not find_unchanged(entries, noisy, changed)
    assert f"{possible} of 20 conversations are swapped, fewer than" in describe_changes(
        entries, NoiseConfig(1.0, 0), changed
    )
    moved = [n for n in range(20) if noisy[n]["conversations"] != entries[n]["conversations"]]
    assert [one["index"] for one in changed] == moved


def test_the_same_answer_to_another_question_is_a_last_resort():
    entries = of(range(20), ["yes"] * 15 + ["no"] * 5)
    for n, entry in enumerate(entries):
        entry["conversations"][0]["value"] = f"<image> is it {n}?"
    noisy, changed = swap_conversations(entries, 0.5, 0)
    assert len(changed) == 10 and not find_unchanged(entries, noisy, changed)
    noisy, changed = swap_conversations(entries, 1.0, 0)
    assert len(changed) == 20
    assert all(noisy[n]["conversations"] != entries[n]["conversations"] for n in range(20))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 1)), min_size=2, max_size=6),
    st.integers(0, 9),
)
def test_nearly_as_many_take_part_as_the_best_permutation_allows(kinds, seed):
    members = list(range(len(kinds)))
    groups = [found for group in (0, 1) if (found := [one for one in members if kinds[one][2] == group])]

    def conflict(one, other):
        return any(a == b for a, b in zip(kinds[one][:2], kinds[other][:2], strict=True))

    def count(permutation):
        moved = [(one, other) for one, other in zip(members, permutation, strict=True) if one != other]
        wrong = any(kinds[one][2] != kinds[other][2] or conflict(one, other) for one, other in moved)
        return 0 if wrong else len(moved)

    counts = {count(permutation) for permutation in itertools.permutations(members)}
    for wanted in range(2, len(members) + 1):
        donors = exchange(groups, wanted, [conflict], random.Random(seed))
        assert sorted(donors) == sorted(donors.values())
        assert not any(conflict(one, other) or kinds[one][2] != kinds[other][2] for one, other in donors.items())
        assert max(found for found in counts if found <= wanted) - 1 <= len(donors) <= wanted


@pytest.mark.parametrize("ratio", [-0.1, 1.1, float("nan")])
def test_a_ratio_outside_0_and_1_is_an_error(ratio):
    with pytest.raises(InputError, match="from 0 to 1"):
        swap_conversations(entries_of([True] * 4), ratio, 0)


def test_the_images_of_a_mixture_stay_as_they_are(tmp_path):
    for name in ("a", "b"):
        cal("noise-inject", "data.n=8", f"data.seed={ord(name)}", "ratio=0", f"output={name}", folder=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.png")}
    sources = ",".join(f"{{path: {tmp_path / name}/data.json, image_folder: {name}/images}}" for name in ("a", "b"))
    words = ["data=llava_mixture", f"data.sources=[{sources}]", "ratio=1", "output=out"]
    told = cal("noise-inject", *words, folder=tmp_path).stdout
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.png")} == before
    assert "data.image_folder=/" in " ".join(told.split())
    words = ["data=llava_json", "data.path=out/data.json", "data.image_folder=/", "batch_size=8"]
    assert "completed" in cal("train", *words, folder=tmp_path).stdout


def test_only_the_chosen_families_are_changed_and_the_ratio_is_theirs():
    world = make_scenes(n=200, seed=0)
    noise = NoiseConfig(0.5, 0, families=["captions", "charts"])
    _, changed = inject_noise(world, noise)
    chosen = [n for n, e in enumerate(world.entries) if e["family"] in noise.families and "image" in e]
    assert {change["index"] for change in changed} <= set(chosen) and len(changed) == round(0.5 * len(chosen))
    assert describe_changes(world.entries, noise, changed) is None
    manifest = make_manifest(noise, world.entries, changed, "source", "sha")
    assert manifest["n"] == len(chosen) and manifest["families"] == ["captions", "charts"]
    _, changes = inject_noise(world, NoiseConfig(1.0, 0, "attribute", families=["reading"]))
    assert {world.entries[change["index"]]["family"] for change in changes} == {"reading"}
    with pytest.raises(InputError, match="no sample with an image is of the family 'photos'; there are captions"):
        inject_noise(world, NoiseConfig(0.5, 0, families=["photos"]))


def test_similar_donors_share_more_words_and_never_the_text():
    world = make_scenes(n=600, seed=1, families=["captions"], irrelevant=0.0)

    def measure(kind):
        noisy, changed = inject_noise(world, NoiseConfig(0.5, 0, kind))
        shares = []
        for change in changed:
            one, other = (
                set(entries[change["index"]]["conversations"][1]["value"].split())
                for entries in (world.entries, noisy.entries)
            )
            assert one != other
            shares.append(len(one & other) / len(one | other))
        assert len(changed) == round(0.5 * sum("image" in entry for entry in world.entries))
        assert len({change["donor_id"] for change in changed}) == len(changed)  # still a permutation
        return sum(shares) / len(shares)

    assert measure("swap_similar") > measure("swap") + 0.15


def test_words_are_ordered_by_what_they_share():
    texts = ["a b c", "x y z", "a b d", "x y w"]
    entries = [{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": text}]} for text in texts]
    assert order_by_words(entries, [0, 1, 2, 3]) == [0, 2, 1, 3]
    assert order_by_words(entries, []) == []


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(n=60, seed=3, text_only_share=0.2)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_fraction_of_the_image_samples_becomes_text_only(scenes, fraction):
    shown = [index for index, entry in enumerate(scenes.entries) if "image" in entry]
    dropped = drop_images(scenes, fraction, seed=1)
    lost = [index for index in shown if dropped[index]["image"] is None]
    assert len(lost) == round(fraction * len(shown)) > 0
    for index in range(len(scenes)):
        before, after = scenes[index], dropped[index]
        turns = [(turn["from"], turn["value"]) for turn in before["conversations"]]
        if index in lost:
            # the text that a world without images has: everything but the mark of the image
            turns = [(speaker, value.removeprefix("<image>\n")) for speaker, value in turns]
        else:
            assert (before["image"] is None) == (after["image"] is None)
        assert [(turn["from"], turn["value"]) for turn in after["conversations"]] == turns
        assert before["id"] == after["id"]


def test_the_seed_chooses_the_samples(scenes):
    def find(seed):
        return [index for index, entry in enumerate(drop_images(scenes, 0.3, seed).entries) if "image" not in entry]

    assert find(1) == find(1) != find(2)


def test_without_dropout_the_data_are_the_same(scenes):
    assert drop_images(scenes, 0.0, seed=1) is scenes
    with pytest.raises(InputError, match=r"image_dropout=0.5 of 0 image samples is none"):
        drop_images(make_scenes(n=4, text_only_share=1.0), 0.5, seed=1)


def test_marks_of_several_images_are_removed_and_the_words_kept(scenes):
    turns = [
        {"from": "human", "value": "is it left of the other?\n<image>\n<image>"},
        {"from": "gpt", "value": "no <image> here."},
    ]
    entry = {"id": "a", "image": ["x.png", "y.png"], "conversations": turns, "regions": [[1, 0, 2, 0, 0, 9, 9]]}
    data = scenes.replace(entries=[entry] * 3)
    only = drop_images(data, 0.9, seed=0).entries
    (changed, *_) = [one for one in only if "image" not in one]
    assert "regions" not in changed and changed["conversations"][0]["value"] == "is it left of the other?"
    assert changed["conversations"][1] == turns[1]
    assert entry["image"] == ["x.png", "y.png"] and turns[0]["value"].count("<image>") == 2
