"""The words of image tokens against cosines and the model's own logits."""

import numpy as np
import pytest
import torch
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.inspection.attention import find_image_grids, record_attention
from cal_cli.inspection.pages import PatchImage, PatchSample, render_patch_words
from cal_cli.inspection.patch_words import (
    compute_share,
    find_patch_words,
    find_region_tokens,
    measure_regions,
    spell_word,
)
from cal_cli.objective.passes import find_positions
from cal_cli.toy.world import make_scenes
from tests.inspection.test_attention import single
from tests.objective.families import IMAGE, make


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen3_vl", "gemma3"])
def test_the_last_layer_says_what_the_model_says(family):
    model, batch = make(family)
    one = single(batch, 0)
    with torch.no_grad():  # a norm whose weights are equal does nothing the second time
        norm = model.get_decoder().norm.weight
        norm.copy_(torch.linspace(0.2, 2.0, len(norm)))
    found = find_patch_words(model, one, words=3, layers=2)
    with torch.no_grad():
        logits = model(**{name: value for name, value in one.items() if name != "labels"}).logits
    expected = logits[0, one["input_ids"][0] == IMAGE].float().softmax(dim=-1).topk(3)
    assert found.stages[0] == "projected" and found.stages[-1] == "layer 4" and len(found.stages) == 3
    assert torch.allclose(found.values[-1], expected.values, atol=1e-5)
    assert torch.equal(found.ids[-1][:, 0], expected.indices[:, 0])


def test_projected_features_are_compared_by_their_cosine():
    model, batch = make("llava")
    one = single(batch, 0)
    found = find_patch_words(model, one, words=4)
    with torch.no_grad():
        features = model.model.get_image_features(one["pixel_values"]).pooler_output[0]
        embeddings = model.get_input_embeddings().weight
    for token, feature in enumerate(features):
        cosines = torch.cosine_similarity(feature[None], embeddings)
        assert found.ids[0, token].tolist() == cosines.argsort(descending=True)[:4].tolist()
        assert torch.allclose(found.values[0, token], cosines.sort(descending=True).values[:4], atol=1e-5)


def test_layers_are_the_norm_and_the_head_of_their_states():
    model, batch = make("llava")
    one = single(batch, 0)
    found = find_patch_words(model, one, words=2)
    with torch.no_grad():
        inputs = {name: value for name, value in one.items() if name != "labels"}
        states = model(**inputs, output_hidden_states=True).hidden_states
        state = states[1][0, one["input_ids"][0] == IMAGE]
        expected = model.lm_head(model.model.language_model.norm(state)).softmax(dim=-1).topk(2)
    assert found.stages == ["projected", "layer 1", "layer 2", "layer 3", "layer 4"]
    assert torch.equal(found.ids[1], expected.indices)


def test_pieces_of_words_are_told_from_words(processor):
    tokenizer = processor.tokenizer
    (red,) = tokenizer(" red", add_special_tokens=False)["input_ids"]
    assert spell_word(tokenizer, red) == ("red", True)
    (dot,) = tokenizer(".", add_special_tokens=False)["input_ids"]
    assert spell_word(tokenizer, dot) == (".", False)
    assert spell_word(tokenizer, len(tokenizer)) == (f"[{len(tokenizer)}]", False)  # embeddings may have more rows
    first, *_ = tokenizer("环", add_special_tokens=False)["input_ids"]  # a byte of three
    assert spell_word(tokenizer, first) == (repr(tokenizer.convert_ids_to_tokens(first)), False)


def test_the_page_has_every_token_and_needs_no_network(model, processor, world):
    place = next(place for place, entry in enumerate(world.entries) if "image" in entry)
    batch = Collator(processor)([world[place]])
    (grid,) = find_image_grids(model, batch)
    words = find_patch_words(model, batch)
    picture = PatchImage(Image.new("RGB", (8, 8)), grid, words, slice(0, len(grid.columns)))
    hostile = '"><script>alert(1)</script>'
    page = render_patch_words([PatchSample(hostile, [(hostile, [picture])])], processor.tokenizer, hostile)
    assert page.count("<script") == 1 and hostile not in page
    assert "http://" not in page and "https://" not in page


@pytest.fixture(scope="module")
def captions():
    return make_scenes(n=6, seed=5, families=["captions"], text_only_share=0.0, grain=0.0)


def test_a_region_s_tokens_spell_its_word(random_model, captions):
    model, processor = random_model
    for place in range(len(captions)):
        entry = captions.entries[place]
        batch = Collator(processor, keep_text=True)([captions[place]])
        columns = find_positions(model, batch).columns + 1
        found = find_region_tokens(batch, entry, columns.tolist())
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
    batch = Collator(processor, keep_text=True)([captions[0]])
    attention = record_attention(model, batch)
    image = (batch["input_ids"][0] == model.config.image_token_id).nonzero()[:, 0]
    found = find_region_tokens(batch, captions.entries[0], attention.position.tolist())
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
