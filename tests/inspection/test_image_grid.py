"""Where image tokens look from, against what changes in them when a part of the picture does."""

import numpy as np
import pytest
import torch

from cal_cli.inspection.image_grid import ImageGrid, find_image_grids, place_rows
from cal_cli.objective.forward import find_image_columns
from tests.objective.families import (
    IMAGE,
    gemma3,
    idefics3,
    llava,
    llava_next,
    make,
    paligemma,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_vl,
)


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


@pytest.mark.parametrize("family", [llava, llava_next, qwen2_vl, qwen2_5_vl, qwen3_vl, paligemma, gemma3])
@pytest.mark.parametrize("row", [0, 1])
def test_each_image_token_has_a_place_and_together_they_cover_the_picture(family, row):
    model, batch = make(family)
    one = single(batch, row)
    (grid,) = find_image_grids(model, one)
    assert grid.columns.tolist() == find_image_columns(model, one["input_ids"])[0].nonzero()[:, 0].tolist()
    boxes = grid.boxes[~grid.boxes.isnan().any(dim=1)]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    layers = 2 if family is llava_next else 1  # the whole picture and its tiles
    assert float(areas.sum()) == pytest.approx(layers, abs=1e-5)
    assert boxes.min() >= 0 and boxes.max() <= 1 + 1e-6


def test_a_changed_part_of_the_picture_changes_the_tokens_there_most():
    model, batch = make(llava)
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
    model, batch = make(llava_next)
    one = single(batch, 0)  # twice as wide as high: two tiles of 4 x 4 patches side by side
    (grid,) = find_image_grids(model, one)
    boxes, lines = grid.boxes[16:], grid.boxes[16:].isnan().any(dim=1)
    assert grid.shape == (4, 8) and lines.nonzero()[:, 0].tolist() == [8, 17, 26, 35]
    assert np.allclose(boxes[~lines], place_rows(4, 8))
    assert np.allclose(grid.boxes[:16], place_rows(4, 4))


def test_tiles_of_other_models_are_refused_in_a_sentence():
    model, batch = make(idefics3)
    one = single(batch, 0)
    assert find_image_grids(model, one)[0].shape == (2, 2)  # a single tile is a square grid
    one["input_ids"] = torch.cat([one["input_ids"], torch.full((1, 4), IMAGE)], dim=1)  # as of a second tile
    with pytest.raises(ValueError, match="it is not known where its image tokens belong"):
        find_image_grids(model, one)


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
