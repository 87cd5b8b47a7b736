"""What is measured in regions, by hand, and where regions come from."""

import numpy as np
import pytest
import torch

from cal_cli.data.collator import Collator
from cal_cli.inspection.attention import record_attention
from cal_cli.inspection.objects import compute_share, find_region_tokens, measure_regions
from cal_cli.toy.scenes import make_scenes


@pytest.fixture(scope="module")
def captions():
    return make_scenes(n=6, seed=5, families=["captions"], text_only_share=0.0, grain=0.0)


def test_a_region_s_tokens_spell_its_word(random_model, captions):
    model, processor = random_model
    for place in range(len(captions)):
        entry = captions.entries[place]
        batch = Collator(processor)([captions[place]])
        found = find_region_tokens(model, processor.tokenizer, batch, entry)
        assert len(found) == len(entry["regions"]) > 0
        labels = batch["labels"][0][batch["labels"][0] != -100]
        for (box, tokens), (turn, begin, end, *expected) in zip(found, entry["regions"], strict=True):
            word = entry["conversations"][turn]["value"][begin:end]
            assert word in processor.tokenizer.decode(labels[tokens]) and list(box) == expected


def test_the_world_s_regions_hold_what_the_words_name(captions):
    for place in range(len(captions)):
        pixels = np.asarray(captions.open_image(captions.entries[place]["image"]), int)
        paper = pixels.max()
        for _, _, _, left, upper, right, lower in captions.entries[place]["regions"]:
            inside = np.abs(pixels[upper:lower, left:right] - paper).max(axis=2) > 30
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()


def test_measures_are_those_of_the_object_s_patch(random_model, captions):
    model, processor = random_model
    model.eval()
    measured = measure_regions(model, processor, captions, 0, remove_sinks=False)
    batch = Collator(processor)([captions[0]])
    attention = record_attention(model, batch)
    image = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    found = find_region_tokens(model, processor.tokenizer, batch, captions.entries[0])
    for numbers, ((left, upper, _, _), tokens) in zip(measured, found, strict=True):
        patch = 4 * (upper // 16) + left // 16
        summed = attention.weights[:, tokens][:, :, image].sum(dim=0)
        assert numbers["attention"] == pytest.approx(float((summed[:, patch] / summed.sum(dim=1)).mean()), abs=1e-5)
        assert numbers["area"] == pytest.approx(1 / 16) and 0 <= numbers["relevancy"] <= 1
        assert numbers["on_picture"] == pytest.approx(float(summed.sum(dim=1).mean()) / 3, abs=1e-5)


def test_shares_of_nothing_are_nothing():
    assert compute_share(torch.zeros(2, 4), torch.tensor([True, False, False, False])) == 0.0
    values = torch.tensor([[1.0, 3.0], [1.0, 1.0]])
    assert compute_share(values, torch.tensor([True, False])) == pytest.approx((0.25 + 0.5) / 2)
