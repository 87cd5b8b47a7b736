"""The slow reference against the fast objective, and a bench of the smallest shape from end to end."""

import json

import pytest
import torch

from cal_cli.bench.released import released_loss
from cal_cli.bench.shapes import Shape
from cal_cli.bench.steps import WAYS, loss_of
from cal_cli.objective import ContrastiveAlignmentLoss
from tests.cal import cal

TINY = {"hidden_size": 64, "intermediate_size": 64, "layers": 1, "heads": 2, "vocabulary": 2100}
TINY |= {"vision_hidden_size": 64, "vision_layers": 1, "text_tokens": 20, "supervised_tokens": 12, "batch_size": 2}


def test_the_released_loss_is_cal_released_gradients_included(model, batch):
    expected = released_loss(model, batch)
    # the released code contrasts samples without an image too: their two passes are the same, their weights alpha
    expected.backward()
    gradient = model.lm_head.weight.grad.clone()
    model.zero_grad()
    output = ContrastiveAlignmentLoss(pooling="flat")(model, batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.lm_head.weight.grad, gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("tiles", "image_tokens"), [(1, 576), pytest.param(5, 2928, marks=pytest.mark.slow)])
def test_a_shape_has_the_tokens_that_its_model_makes(tiles, image_tokens):
    shape = Shape(tiles=tiles, **TINY)
    model, batch = shape.model(torch.float32, False), shape.batch("cpu", torch.float32)
    assert shape.image_tokens == image_tokens == (batch["input_ids"][0] == 3).sum()
    losses = {way: loss_of(way, model, batch)().item() for way in WAYS}  # the model itself counts its features
    assert abs(losses["ce"] - losses["ce_library"]) < 1e-4
    assert abs(losses["cal"] - losses["cal_cached"]) < 1e-5


def test_scaling_divides_depth_and_width_alone():
    shape = Shape(tiles=1, **{**TINY, "layers": 8, "hidden_size": 512, "heads": 8, "vision_hidden_size": 512})
    small = shape.scaled(depth=4, width=8)
    assert (small.layers, small.hidden_size, small.heads, small.vision_hidden_size) == (2, 64, 1, 64)
    assert (small.text_tokens, small.vocabulary, small.image_tokens) == (20, 2100, 576)


def test_the_command_writes_ratios_with_intervals(tmp_path):
    sizes = [f"shape.{name}={value}" for name, value in TINY.items()]
    result = cal("bench", *sizes, "repeats=2", "depth=1", "width=1", "ways=[ce,cal]", folder=tmp_path)
    (path,) = tmp_path.glob("runs/bench/*/bench.json")
    found = json.loads(path.read_text())
    assert found["ratios"]["cal/ce"]["ci95"][0] <= found["ratios"]["cal/ce"]["median"]
    assert set(found["peak_memory_bytes"]) == {"ce", "cal"}
    assert found["floor"] == found["text_share"] * found["decoder_forward_share"]
    assert "the floor is" in result.stdout


def test_wrong_values_are_named(tmp_path):
    for word, named in (
        ("ways=[fast]", "ce_library"),
        ("measure=hours", "step and trainer"),
        ("repeats=0", "at least 1"),
        ("width=5", "must divide"),
        ("shape.tiles=3", "1 (LLaVA-1.5)"),
    ):
        result = cal("bench", word, folder=tmp_path, check=False)
        assert result.returncode == 2 and named in result.stderr, result.stderr
