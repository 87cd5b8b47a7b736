"""The world: fixed by its seed, split without overlap, and told truthfully."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cal_cli.runtime.errors import InputError
from cal_cli.toy.benchmark import find_objects, make_benchmark
from cal_cli.toy.scenes import COLOURS, PLACES, get_split, make_scenes


def objects_painted(image):
    """The (colour, place) pairs that a picture shows, read from its pixels."""
    found = set()
    for number, place in enumerate(PLACES):
        row, column = divmod(number, 3)
        cell = image.crop((column * 16, row * 16, column * 16 + 16, row * 16 + 16))
        colours = {pixel for _, pixel in cell.getcolors()}
        found |= {(name, place) for name, value in COLOURS.items() if value in colours}
    return found


def captions(data):
    return [
        (sample["image"], sample["conversations"][1]["value"])
        for sample in (data[index] for index in range(len(data)))
        if sample["image"] and sample["conversations"][0]["value"].endswith("describe the picture.")
    ]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6))
def test_captions_tell_what_the_pixels_show(seed):
    for image, text in captions(make_scenes(n=20, seed=seed)):
        assert objects_painted(image) == {(colour, place) for colour, _, place in find_objects(text)}


def test_answers_follow_from_the_picture():
    data = make_scenes(n=300, seed=1, question_share=1.0, text_only_share=0.0)
    counted = 0
    for index in range(len(data)):
        shown = objects_painted(data[index]["image"])
        turns = [turn["value"] for turn in data[index]["conversations"]]
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            if match := re.search(r"how many shapes are (\w+)\?", question):
                number = ["none", "one", "two"][sum(colour == match[1] for colour, _ in shown)]
                assert answer == f"{match[1]} shapes: {number}."
                counted += 1
            if match := re.search(r"where is the (\w+) \w+\?", question):
                place = re.search(r"in the (.*)\.", answer)[1]
                assert (match[1], place) in shown
    assert counted > 50


def test_the_same_seed_gives_the_same_world_and_more_samples_change_none():
    few, many = make_scenes(n=20, seed=5), make_scenes(n=60, seed=5)
    assert few.entries == many.entries[:20]
    assert all(
        few[i]["image"] is None or few[i]["image"].tobytes() == many[i]["image"].tobytes() for i in range(len(few))
    )
    assert make_scenes(n=20, seed=6).entries != few.entries


def test_train_and_test_share_no_scene():
    train = {text for _, text in captions(make_scenes(n=3000, seed=0, text_only_share=0.0))}
    test = {q.answers[0] for q in make_benchmark(n=512).questions if q.tags["kind"] == "caption"}
    assert not train & test
    for texts, split in ((train, "train"), (test, "test")):
        for text in list(texts)[:200]:
            scene = tuple(re.findall(r"a (\w+) (\w+) in the (\w+ \w+)", text))
            assert get_split(scene) == split


def test_shares_are_kept():
    entries = make_scenes(n=4000, seed=2, text_only_share=0.25, question_share=0.4).entries
    text_only = sum("image" not in entry for entry in entries) / len(entries)
    asking = sum(len(entry["conversations"]) > 2 for entry in entries) / len(entries)
    assert abs(text_only - 0.25) < 0.03  # over four standard deviations
    assert abs(asking - 0.4) < 0.04


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n": 0}, "data.n=0"),
        ({"n": 1, "split": "val"}, "train and test"),
        ({"n": 1, "text_only_share": 2.0}, "0 to 1"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(InputError, match=named):
        make_scenes(**options)
