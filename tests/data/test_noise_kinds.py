"""Errors within a text: what is changed, what the manifest says of it, and what cannot be changed."""

import json
import random
import re

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cal_cli.data.noise import WORDS as WORDS_FILE
from cal_cli.data.noise import NoiseConfig, describe_changes, edit_conversations, inject_noise
from cal_cli.data.noise_kinds import (
    KINDS,
    WordLists,
    add_sentence,
    cut_text,
    load_words,
    replace_habitually,
    replace_word,
    shuffle_words,
)
from cal_cli.runtime.errors import InputError
from cal_cli.toy.world import make_scenes
from tests.cal import cal

WORDS = WordLists(
    {"colour": ["red", "blue", "orange"], "number": ["two", "three"], "animal": ["dog", "elephant"]},
    ["There is also {a} {colour} {animal}."],
)


def drawn(seed=0):
    return random.Random(seed)


@given(st.integers(0, 99), st.sampled_from(["A red dog.", "two RED dogs and a dog", "Orange, orange!", "x red-blue y"]))
def test_one_word_becomes_another_of_its_list(seed, text):
    edit = replace_word(text, WORDS, drawn(seed))
    (begin, end) = edit.spans[0]
    new, list_of = edit.text[begin:end], WORDS.list_of
    before, after = re.findall(r"\w+", text), re.findall(r"\w+", edit.text)
    differing = [(one, two) for one, two in zip(before, after, strict=True) if one.lower() != two.lower()]
    replaced = [(one, two) for one, two in differing if one.lower() not in ("a", "an")]
    assert len(replaced) == 1 and replaced[0][1] == new
    old = replaced[0][0]
    assert list_of[old.lower()] == list_of[new.lower()] and old.isupper() == new.isupper()
    assert old[0].isupper() == new[0].isupper()
    assert edit == replace_word(text, WORDS, drawn(seed))


@given(st.integers(0, 99), st.sampled_from(["it is 7 high.", "k42", "[3,18,15,30]", "07:30", "9"]))
def test_a_number_becomes_another_with_as_many_digits(seed, text):
    edit = replace_word(text, WORDS, drawn(seed))
    before, after = re.findall(r"\d+", text), re.findall(r"\d+", edit.text)
    differing = [(one, two) for one, two in zip(before, after, strict=True) if one != two]
    ((old, new),) = differing
    (begin, end) = edit.spans[0]
    assert edit.text[begin:end] == new and len(new) == len(old) and new[0] != "0" and new not in before
    assert re.sub(r"\d+", "#", text) == re.sub(r"\d+", "#", edit.text)


def test_articles_agree_and_words_of_the_text_are_avoided():
    animals = WordLists({"animal": ["dog", "elephant"]}, [])
    assert replace_word("A dog sits.", animals, drawn()) == ("An elephant sits.", [(3, 11)])
    assert replace_word("an elephant sits", animals, drawn()) == ("a dog sits", [(2, 5)])
    for seed in range(20):
        assert replace_word("a red and a blue one", WORDS, drawn(seed)).text.count("orange") == 1
    assert replace_word("reddish dogs", WORDS, drawn()) is None  # whole words alone


def test_a_sentence_is_added_of_words_that_the_text_has_not():
    for seed in range(20):
        edit = add_sentence("A red dog.", WORDS, drawn(seed))
        (begin, end) = edit.spans[0]
        assert edit.text[:begin] == "A red dog. " and end == len(edit.text)
        assert edit.text[begin:] in ("There is also a blue elephant.", "There is also an orange elephant.")
    assert add_sentence("a red one.", WORDS, drawn()).text.startswith("a red one. there is")
    assert add_sentence("a dog and an elephant", WORDS, drawn()) is None


@given(st.text(max_size=40), st.integers(0, 9))
def test_cuts_and_orders(text, seed):
    cut, mixed = cut_text(text, WORDS, drawn(seed)), shuffle_words(text, WORDS, drawn(seed))
    words = text.split()
    if len(words) < 2:
        assert cut is None
    else:
        assert text.startswith(cut.text) and cut.spans == [(len(cut.text), len(cut.text))]
        assert 1 <= len(cut.text.split()) < len(words)
    if len(set(words)) < 2:
        assert mixed is None
    else:
        assert sorted(mixed.text.split()) == sorted(words) and mixed.text.split() != words


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "habit"])  # which cannot change every answer
@pytest.mark.parametrize("ratio", [0.0, 0.3, 1.0])
def test_the_share_of_the_default_world_is_exact_and_the_same_seed_is_the_same(kind, ratio):
    # an answer of one word cannot be cut, nor put into another order
    world = make_scenes(n=60, seed=0, families=["captions"] if kind in ("truncate", "shuffle") else None)
    noise = NoiseConfig(ratio, 3, kind)
    data, changed = inject_noise(world, noise)
    shown = [index for index, entry in enumerate(world.entries) if "image" in entry]
    assert len(changed) == round(ratio * len(shown)) and describe_changes(world.entries, noise, changed) is None
    assert {change["index"] for change in changed} <= set(shown)
    told = {change["index"]: change for change in changed}
    for index, (before, after) in enumerate(zip(world.entries, data.entries, strict=True)):
        if index not in told:
            assert after == before
            continue
        turn = told[index]["turn"]
        one, two = before["conversations"][turn], after["conversations"][turn]
        assert one["from"] == "gpt" and one["value"] != two["value"]
        rest = [[t for n, t in enumerate(e["conversations"]) if n != turn] for e in (before, after)]
        assert rest[0] == rest[1] and before["id"] == after["id"] and before["image"] == after["image"]
        for begin, end in told[index]["spans"]:
            assert 0 <= begin <= end <= len(two["value"])
        if kind == "attribute":
            new = two["value"][begin:end]
            assert new.isdigit() or new in load_words(str(WORDS_FILE)).list_of
    assert list(data.entries) == list(inject_noise(world, noise)[0].entries)
    assert ratio == 0 or list(inject_noise(world, NoiseConfig(ratio, 4, kind))[0].entries) != list(data.entries)


@pytest.mark.parametrize(
    ("text", "habit"),
    [
        ("A red dog and a blue one.", ("A blue elephant and an orange one.", ["blue", "elephant", "orange"])),
        ("RED, Red: two", ("BLUE, Blue: three", ["BLUE", "Blue", "three"])),
        ("an orange elephant", None),  # the last of their lists
    ],
)
def test_a_habit_takes_every_word_for_the_next_of_its_list(text, habit):
    edit = replace_habitually(text, WORDS, drawn())
    found = None if edit is None else (edit.text, [edit.text[begin:end] for begin, end in edit.spans])
    assert found == habit


def test_a_habit_is_the_same_in_every_text_of_a_data_set(tmp_path):
    """One colour is always called another, in half of the texts: what else is changed follows from it."""
    (tmp_path / "habit.yaml").write_text("lists: {colour: [red, purple]}\nsentences: []\n")
    world = make_scenes(n=200, seed=0, families=["captions"])
    noise = NoiseConfig(0.2, 0, "habit", str(tmp_path / "habit.yaml"))
    data, changed = inject_noise(world, noise)
    assert len(changed) == round(0.2 * sum("image" in entry for entry in world.entries))
    for change in changed:
        before, after = (e.entries[change["index"]]["conversations"][1]["value"] for e in (world, data))
        assert re.search(r"\bred\b", before) and re.sub(r"\bred\b", "purple", before) == after


def test_what_cannot_be_changed_is_counted_and_weights_of_tokens_stay():
    def entry(number, answer, **more):
        turns = [{"from": "human", "value": "<image>what?"}, {"from": "gpt", "value": answer}]
        return {"id": str(number), "image": "a.png", "conversations": turns, **more}

    entries = [entry(0, "red"), entry(1, "a thing"), entry(2, "blue", loss_weights=[[1.0, 1.0]])]
    entries += [entry(3, "blue", loss_weights=[0.5])]
    noisy, changed = edit_conversations(entries, 1.0, 0, "attribute", WORDS)
    assert [change["index"] for change in changed] == [0, 3]
    assert noisy[3]["loss_weights"] == [0.5] and noisy[1:3] == entries[1:3]
    said = describe_changes(entries, NoiseConfig(1.0, 0, "attribute"), changed)
    assert "2 of 4 conversations are changed" in said and "noise.kind=attribute" in said


def test_wrong_values_are_named(tmp_path):
    world = make_scenes(n=4, seed=0)
    with pytest.raises(InputError, match="allowed are swap, swap_similar, attribute, habit, sentence"):
        inject_noise(world, NoiseConfig(0.5, 0, "typo"))
    with pytest.raises(InputError, match="from 0 to 1"):
        inject_noise(world, NoiseConfig(1.5, 0, "shuffle"))
    with pytest.raises(InputError, match=r"noise\.kind=swap uses no lists of words; attribute, habit, sentence do"):
        inject_noise(world, NoiseConfig(0.5, 0, "swap", words=str(WORDS_FILE)))
    for text, said in (
        ("lists: 3", "cannot be read"),
        ("lists: {a: [x, y]}\nsentences: ['the {b}']", "has no list b"),
        ("lists: {a: [x]}\nsentences: []", "needs two words"),
        ("{", "cannot be read"),
    ):
        (tmp_path / "words.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            load_words(str(tmp_path / "words.yaml"))
    with pytest.raises(InputError, match="cannot be read"):
        load_words(str(tmp_path / "none.yaml"))


@pytest.mark.slow
def test_the_manifest_s_truth_reaches_the_tokens(tmp_path):
    """The written data with their manifest, and noise on the fly, mark the same tokens: those of the wrong words."""
    cal("noise-inject", "kind=attribute", "ratio=0.5", "data.n=30", "output=noisy", folder=tmp_path)
    manifest = json.loads((tmp_path / "noisy/noise_manifest.json").read_text())
    assert manifest["kind"] == "attribute" and all({"turn", "spans"} <= set(one) for one in manifest["changed"])
    on_disk = ["data=llava_json", "data.path=noisy/data.json", "data.image_folder=noisy/images"]
    told = cal("token-weight-dump", *on_disk, "manifest=noisy/noise_manifest.json", "output=a", folder=tmp_path).stdout
    cal("token-weight-dump", "data.n=30", "noise.kind=attribute", "noise.ratio=0.5", "output=b", folder=tmp_path)
    assert "do not describe their image" in " ".join(told.split())
    tables = [pq.read_table(tmp_path / name / "tokens.parquet").to_pylist() for name in "ab"]
    marked = [[(row["sample_id"], row["position"], row["token"]) for row in t if row["is_noise"]] for t in tables]
    assert marked[0] == marked[1]
    entries = {entry["id"]: entry for entry in json.loads((tmp_path / "noisy/data.json").read_text())}
    wrong = {
        change["id"]: entries[change["id"]]["conversations"][change["turn"]]["value"][slice(*change["spans"][0])]
        for change in manifest["changed"]
    }
    spelt = {}
    for identity, _, token in marked[0]:
        spelt[identity] = spelt.get(identity, "") + token
    assert {identity: text.strip() for identity, text in spelt.items()} == wrong
