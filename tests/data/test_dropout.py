"""Image dropout: which samples lose their images, and what remains of them."""

import pytest

from cal_cli.data.dropout import drop_images
from cal_cli.toy.world import make_scenes


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
