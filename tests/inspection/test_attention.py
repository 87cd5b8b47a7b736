"""Attention and relevancy against the library's own output and the propagation written out."""

import numpy as np
import pytest
import torch
from PIL import Image

from cal_cli.inspection.attention import SINK, compute_relevancy, find_sinks, record_attention
from cal_cli.inspection.attention_page import AttentionSample, PictureMaps, list_kinds, pack_maps, render_attention
from tests.inspection.test_image_grid import single
from tests.objective.families import gemma3, llava, llava_next, make, mllama, qwen2_5_vl

SUPPORTED = [llava, llava_next, qwen2_5_vl, gemma3]


def run_eagerly(model, one):
    model.set_attn_implementation("eager")
    return model(**{name: value for name, value in one.items() if name != "labels"}, output_attentions=True)


@pytest.mark.parametrize("family", SUPPORTED)
def test_attention_is_the_library_s_from_the_position_before_each_token(family):
    model, batch = make(family)
    one, before = single(batch, 0), model.config._attn_implementation
    found = record_attention(model, one)
    assert model.config._attn_implementation == before
    columns = (one["labels"][0] != -100).nonzero()[:, 0]
    assert found.position.tolist() == columns.tolist()
    with torch.no_grad():
        layers = run_eagerly(model, one).attentions
    expected = torch.stack([layer[0].mean(dim=0)[columns - 1] for layer in layers])
    assert torch.allclose(found.weights, expected, atol=1e-5)
    assert torch.allclose(found.weights.sum(dim=-1), torch.ones(found.weights.shape[:2]), atol=1e-4)


@pytest.mark.parametrize("family", SUPPORTED)
def test_relevancy_is_the_product_written_out(family):
    model, batch = make(family)
    one = single(batch, 0)
    found = compute_relevancy(model, one)
    some = compute_relevancy(model, one, [2])
    assert torch.allclose(some[0], found[2], atol=1e-5)
    outputs = run_eagerly(model, one)
    columns = (one["labels"][0] != -100).nonzero()[:, 0].tolist()
    assert len(found) == len(columns)
    length = one["input_ids"].shape[1]
    for row, column in zip(found, columns, strict=True):
        logit = outputs.logits[0, column - 1, one["input_ids"][0, column]]
        gradients = torch.autograd.grad(logit, outputs.attentions, retain_graph=True)
        relevancy = torch.eye(length)
        for weights, gradient in zip(outputs.attentions, gradients, strict=True):
            relevancy = relevancy + (weights[0] * gradient[0]).clamp_min(0).mean(dim=0).detach() @ relevancy
        expected = relevancy[column - 1] - torch.eye(length)[column - 1]
        assert torch.allclose(row, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()) + 1e-7)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cross_attention_is_refused_in_a_sentence():
    model, batch = make(mllama)
    for look in (record_attention, compute_relevancy):
        with pytest.raises(ValueError, match="its class returns no attention of text to image tokens"):
            look(model, single(batch, 0))


def test_sinks_are_columns_with_one_huge_entry():
    hidden = torch.randn(6, 1000)
    hidden[2, 7] = 60 * hidden[2].std()
    assert find_sinks(hidden).tolist() == [False, False, True, False, False, False]
    assert not find_sinks(torch.ones(3, int(SINK**2) - 1)).any()  # no entry can be as large


def test_attention_to_sinks_is_removed_where_they_are():
    model, batch = make(llava)
    found = record_attention(model, single(batch, 0))
    columns = torch.arange(4, 12)
    found.sinks[1, 6] = True
    kept, removed = (found.select(columns, remove) for remove in (False, True))
    assert (removed[1, :, 2] == 0).all() and (kept[1, :, 2] > 0).all()
    kept[1, :, 2] = 0
    assert torch.equal(kept, removed)


def test_maps_are_packed_as_shares_of_their_largest_cell():
    maps = np.arange(24.0).reshape(2, 3, 2, 2)
    packed = pack_maps(maps)
    import base64

    levels = np.frombuffer(base64.b64decode(packed["levels"]), np.uint8).reshape(maps.shape)
    assert np.allclose(levels / 255 * maps.max(axis=(2, 3), keepdims=True), maps, atol=maps.max() / 500)
    assert packed["sums"] == maps.sum(axis=(2, 3)).tolist() and (packed["rows"], packed["columns"]) == (2, 2)
    assert not any(base64.b64decode(pack_maps(np.zeros((1, 1, 2, 2)))["levels"]))


def test_the_page_escapes_text_and_needs_no_network():
    hostile = '</span><script>alert(1)</script><img src=x onerror="alert(1)">'
    pictures = [PictureMaps(Image.new("RGB", (8, 4)), np.ones((1, 4, 2, 2)))]
    sample = AttentionSample(hostile, [(hostile, None), (hostile, 0)], [-1, 0], [(hostile, pictures)])
    page = render_attention([sample], list_kinds(2), hostile, hostile)
    assert page.count("<script") == 1 and "<img src=x" not in page and hostile not in page
    assert "http://" not in page and "https://" not in page and "data:image/jpeg;base64," in page
