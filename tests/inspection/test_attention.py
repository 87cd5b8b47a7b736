"""Attention and relevancy against the library's own output and the propagation written out."""

import numpy as np
import pytest
import torch
from PIL import Image

from cal_cli.inspection.attention import (
    SINK,
    ImageGrid,
    compute_relevancy,
    find_image_grids,
    find_sinks,
    get_seen_pixels,
    place_rows,
    record_attention,
)
from cal_cli.inspection.pages import AttentionSample, ImageMaps, list_kinds, pack_maps, render_attention
from cal_cli.objective.passes import find_image_columns
from tests.objective.families import IMAGE, make

SUPPORTED = ["llava", "llava_next", "qwen2_5_vl", "gemma3"]


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
    model, batch = make("mllama")
    for look in (record_attention, compute_relevancy):
        with pytest.raises(ValueError, match="its class returns no attention of text to image tokens"):
            look(model, single(batch, 0))


def test_sinks_are_columns_with_one_huge_entry():
    hidden = torch.randn(6, 1000)
    hidden[2, 7] = 60 * hidden[2].std()
    assert find_sinks(hidden).tolist() == [False, False, True, False, False, False]
    assert not find_sinks(torch.ones(3, int(SINK**2) - 1)).any()  # no entry can be as large


def test_attention_to_sinks_is_removed_where_they_are():
    model, batch = make("llava")
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
    pictures = [ImageMaps(Image.new("RGB", (8, 4)), np.ones((1, 4, 2, 2)))]
    sample = AttentionSample(hostile, [(hostile, None), (hostile, 0)], [-1, 0], [(hostile, pictures)])
    page = render_attention([sample], list_kinds(2), hostile, hostile)
    assert page.count("<script") == 1 and "<img src=x" not in page and hostile not in page
    assert "http://" not in page and "https://" not in page and "data:image/jpeg;base64," in page


def single(batch, row):
    """One sample of a batch of two, without padding."""
    kept = batch["attention_mask"][row].bool()
    found = {}
    for name, value in batch.items():
        part = value[row : row + 1]
        if name == "pixel_values" and value.dim() == 2:  # patches of Qwen's processor, of both samples
            part = value.view(2, -1, value.shape[-1])[row]
        found[name] = part[:, kept] if value.shape == batch["input_ids"].shape else part
    return found


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "paligemma", "gemma3"])
@pytest.mark.parametrize("row", [0, 1])
def test_each_image_token_has_a_place_and_together_they_cover_the_picture(family, row):
    model, batch = make(family)
    one = single(batch, row)
    (grid,) = find_image_grids(model, one)
    assert grid.columns.tolist() == find_image_columns(model, one["input_ids"])[0].nonzero()[:, 0].tolist()
    boxes = grid.boxes[~grid.boxes.isnan().any(dim=1)]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    layers = 2 if family == "llava_next" else 1  # the whole picture and its tiles
    assert float(areas.sum()) == pytest.approx(layers, abs=1e-5)
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6


def test_a_changed_part_of_the_picture_changes_the_tokens_there_most():
    model, batch = make("llava")
    one = single(batch, 0)
    (grid,) = find_image_grids(model, one)
    with torch.no_grad():
        before = model.model.get_image_features(one["pixel_values"]).pooler_output[0]
        for row, column in ((0, 0), (1, 3), (3, 2)):
            pixels = one["pixel_values"].clone()
            pixels[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 9.0
            change = (model.model.get_image_features(pixels).pooler_output[0] - before).norm(dim=1)
            box = grid.boxes[int(change.argmax())] * 4
            assert box.tolist() == [column, row, column + 1, row + 1]


def test_tiles_are_put_back_without_their_padding():
    model, batch = make("llava_next")
    one = single(batch, 0)  # twice as wide as high: two tiles of 4 x 4 patches side by side
    (grid,) = find_image_grids(model, one)
    boxes, lines = grid.boxes[16:], grid.boxes[16:].isnan().any(dim=1)
    assert grid.shape == (4, 8) and lines.nonzero()[:, 0].tolist() == [8, 17, 26, 35]
    assert np.allclose(boxes[~lines], place_rows(4, 8))
    assert np.allclose(grid.boxes[:16], place_rows(4, 4))


def test_tiles_of_other_models_are_refused_in_a_sentence():
    model, batch = make("idefics3")
    one = single(batch, 0)
    assert find_image_grids(model, one)[0].shape == (2, 2)  # a single tile is a square grid
    one["input_ids"] = torch.cat([one["input_ids"], torch.full((1, 4), IMAGE)], dim=1)  # as of a second tile
    with pytest.raises(ValueError, match="it is not known where its image tokens belong"):
        find_image_grids(model, one)
    one["pixel_values"] = one["pixel_values"].repeat(1, 4, 1, 1, 1)  # four tiles, whose tokens would fill a square
    one["input_ids"] = torch.cat([one["input_ids"], torch.full((1, 8), IMAGE)], dim=1)
    assert int((one["input_ids"] == IMAGE).sum()) == 16
    with pytest.raises(ValueError, match="it is not known where its image tokens belong"):
        find_image_grids(model, one)


@pytest.mark.parametrize(("sizes", "shapes"), [([[36, 64]], [(9, 16)]), ([[16, 32], [24, 8]], [(4, 8), (6, 2)])])
def test_grids_have_the_rows_and_columns_of_their_image(sizes, shapes):
    model, _ = make("llava")
    tokens = sum(rows * columns for rows, columns in shapes)
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    one = {
        "input_ids": torch.tensor([[1, *[IMAGE] * tokens, 30, 31]]),
        "pixel_values": torch.randn(len(sizes), 3, height, width),
        "image_sizes": torch.tensor(sizes),
    }
    assert [grid.shape for grid in find_image_grids(model, one)] == shapes
    assert [tuple(pixels.shape[1:]) for pixels in get_seen_pixels(one)] == [tuple(size) for size in sizes]


def test_numbers_are_spread_over_the_area_of_their_token():
    whole, halves = place_rows(1, 1), place_rows(1, 2)
    grid = ImageGrid(torch.arange(4), torch.cat([whole, halves, torch.full((1, 4), torch.nan)]), (2, 2))
    drawn = grid.draw(torch.tensor([[4.0, 2.0, 0.0, 9.0]]))
    assert torch.allclose(drawn, torch.tensor([[[2.0, 1.0], [2.0, 1.0]]]))


def test_tokens_inside_a_box_touch_it():
    grid = ImageGrid(torch.arange(16), place_rows(4, 4), (4, 4))
    assert grid.find_inside((0.3, 0.3, 0.4, 0.45)).nonzero()[:, 0].tolist() == [5]
    assert grid.find_inside((0.2, 0.0, 0.3, 0.1)).nonzero()[:, 0].tolist() == [0, 1]
    assert grid.find_inside((0.25, 0.25, 0.5, 0.5)).nonzero()[:, 0].tolist() == [5]
