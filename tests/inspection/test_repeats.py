"""Repeated texts and images against a count by hand."""

import pandas as pd

from cal_cli.data.sample import Conversations
from cal_cli.inspection.repeats import describe_repeats, find_repeats

CAPTION = "A photograph of a small harbour."


def make_data(texts):
    entries = [
        {"id": str(n), "image": f"{n}.png", "conversations": [{"from": "human", "value": "<image>"}, *answer(text)]}
        for n, text in enumerate(texts)
    ]
    return Conversations(entries, lambda name: None)


def answer(text):
    return [{"from": "gpt", "value": text}]


def test_repeated_texts_and_images_are_counted():
    texts = [
        CAPTION,
        CAPTION,
        "a photograph of a small  harbour",
        "yes",
        "yes",
        "a red boat on a blue lake",
        "one of a kind!",
    ]
    images = ["a", "b", "c", "d", "e", "a", "f"]
    samples = pd.DataFrame({"index": range(7), "image": images})
    found, summary = find_repeats(make_data(texts), samples)
    assert found["text_repeats"].tolist() == [3, 3, 3, 1, 1, 1, 1]
    assert found["image_repeats"].tolist() == [2, 1, 1, 1, 1, 2, 1]
    assert found["image_texts"].tolist() == [2, 1, 1, 1, 1, 2, 1]
    assert (summary["texts"]["samples"], summary["texts"]["nearly"]) == (3, 1)
    (most,) = summary["texts"]["most"]
    assert most["samples"] == 3 and [one["id"] for one in most["examples"]] == ["0", "1", "2"]
    assert (summary["images"]["samples"], summary["images"]["with_several_texts"]) == (2, 2)
    assert [one["text"] for one in summary["images"]["most"][0]["examples"]] == [CAPTION, texts[5]]
    assert "3 samples share their text" in describe_repeats(summary)[0]


def test_samples_that_were_not_audited_do_not_count():
    samples = pd.DataFrame({"index": [0, 2], "image": ["a", "b"]})
    found, summary = find_repeats(make_data([CAPTION, CAPTION, "something else entirely"]), samples)
    assert found["text_repeats"].tolist() == [1, 1] and describe_repeats(summary) == []


def test_texts_of_other_scripts_are_compared_too():
    texts = [
        "一只红色的圆环，它很大，在左边的角落里。",
        "一只红色的圆环 它很大 在左边的角落里",
        "Café à côté de l'église",
        "cafe\u0301 à côté de l'église!",
    ]
    samples = pd.DataFrame({"index": range(4), "image": list("abcd")})
    assert find_repeats(make_data(texts), samples)[0]["text_repeats"].tolist() == [2, 2, 2, 2]
