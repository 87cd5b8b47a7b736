"""The slow reference against the fast objective, and a bench of the smallest shape from end to end."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cal_cli.bench.shapes import Checkpoint, MGMShape, Shape
from cal_cli.bench.steps import WAYS, compute_released_loss, count_operations, make_loss, measure_peak_memory
from cal_cli.commands.bench import make_step_table
from cal_cli.objective import ContrastiveAlignmentLoss, CrossEntropyLoss, RuleLoss
from cal_cli.objective.rules import MismatchPosterior, ProbabilityPower
from tests.cal import cal
from tests.objective import families

TINY = {"hidden_size": 64, "intermediate_size": 64, "layers": 1, "heads": 2, "vocabulary": 2100}
TINY |= {"vision_hidden_size": 64, "vision_layers": 1, "text_tokens": 20, "supervised_tokens": 12, "batch_size": 2}
OURS = {
    "ce": CrossEntropyLoss(),
    "cal": ContrastiveAlignmentLoss(),
    "cal_cached": ContrastiveAlignmentLoss(contrast="cached"),
}
NAMES = [*WAYS, *OURS]
REFERENCE = Path(__file__).parents[2] / "runs/reference/bench"


def test_the_released_loss_is_cal_released_gradients_included(model, batch):
    expected = compute_released_loss(model, batch)
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
    model, batch = shape.make_model(torch.float32, False), shape.make_batch("cpu", torch.float32)
    assert shape.image_tokens == image_tokens == (batch["input_ids"][0] == 3).sum()
    # the model itself counts its features
    losses = {way: make_loss(way, model, batch, OURS.get(way))().item() for way in NAMES}
    assert abs(losses["ce"] - losses["ce_library"]) < 1e-4
    assert abs(losses["cal"] - losses["cal_cached"]) < 1e-5


@pytest.mark.parametrize("name", ["llava15_7b_h100", "llava_next_7b_h100"])
def test_the_table_of_a_large_model_fits_into_80_columns(name):
    measured = json.loads((REFERENCE / f"{name}.json").read_text())
    console = Console(width=80, file=io.StringIO())
    console.print(make_step_table(measured, "llava_next_7b"))
    text = console.file.getvalue()
    assert "…" not in text
    low, high = measured["ratios"]["cal_released/ce"]["ci95"]
    assert f"[{low:.2f}, {high:.2f}]" in text


@pytest.mark.parametrize(("crops", "image_tokens"), [(1, 576), pytest.param(2, 2880, marks=pytest.mark.slow)])
def test_mgm_s_shape_is_that_of_its_model(crops, image_tokens):
    shape = MGMShape(tiles=1, crops=crops, aux_hidden_sizes=[8, 8, 16, 16], aux_depths=[1, 1, 1, 1], **TINY)
    model, batch = shape.make_model(torch.float32, False), shape.make_batch("cpu", torch.float32)
    assert shape.image_tokens == image_tokens == (batch["input_ids"][0] == 3).sum()
    assert not any(parameter.requires_grad for parameter in model.model.aux_vision_tower.parameters())
    losses = {way: make_loss(way, model.eval(), batch, OURS.get(way))().item() for way in ("ce", "ce_library", "cal")}
    assert abs(losses["ce"] - losses["ce_library"]) < 1e-4
    whole = {**TINY, "layers": 8, "hidden_size": 512, "heads": 8, "vision_hidden_size": 512}
    wide = MGMShape(tiles=1, crops=crops, aux_hidden_sizes=[192, 384, 768, 1536], aux_depths=[3, 3, 27, 3], **whole)
    small = wide.scale(depth=4, width=8)
    assert (small.aux_hidden_sizes, small.aux_depths) == ([24, 48, 96, 192], [1, 1, 6, 1])


def test_scaling_divides_depth_and_width_alone():
    shape = Shape(tiles=1, **{**TINY, "layers": 8, "hidden_size": 512, "heads": 8, "vision_hidden_size": 512})
    small = shape.scale(depth=4, width=8)
    assert (small.layers, small.hidden_size, small.heads, small.vision_hidden_size) == (2, 64, 1, 64)
    assert (small.text_tokens, small.vocabulary, small.image_tokens) == (20, 2100, 576)


def test_the_released_way_refuses_what_is_not_built_like_llava():
    model, batch = families.make("qwen2_vl")
    with pytest.raises(ValueError, match="leave cal_released out"):
        compute_released_loss(model, batch)


def test_a_checkpoint_is_measured_with_its_own_processor():
    shape = Checkpoint(path=None, picture=64, text_tokens=20, supervised_tokens=12, batch_size=3)
    model, batch = shape.make_model(torch.float32, False), shape.make_batch("cpu", torch.float32)
    assert shape.image_tokens == 16
    assert ((batch["labels"] != -100).sum(dim=1) == 12).all()
    assert batch["input_ids"].shape == batch["attention_mask"].shape == batch["labels"].shape
    losses = {way: make_loss(way, model, batch, OURS.get(way))().item() for way in NAMES}
    assert abs(losses["ce"] - losses["ce_library"]) < 1e-4


def test_operations_and_memory_are_those_of_the_logits():
    """All 596 positions meet the vocabulary in the library's way, the 12 supervised ones of each sample in ours."""
    found = {}
    for vocabulary in (2100, 12100):
        shape = Shape(tiles=1, **{**TINY, "vocabulary": vocabulary})
        model, batch = shape.make_model(torch.float32, False), shape.make_batch("cpu", torch.float32)
        for way in ("ce_library", "ce"):
            loss = make_loss(way, model, batch, OURS.get(way))
            found[way, vocabulary] = count_operations(model, loss), measure_peak_memory(model, loss)
    for way, positions in (("ce_library", 2 * 596), ("ce", 2 * 12)):
        # logits, and the gradients of hidden states and head: two operations for each of their products
        grown = found[way, 12100][0] - found[way, 2100][0]
        assert grown == 3 * 2 * positions * 64 * 10_000
    weights = 2 * 64 * 10_000 * 4 * 2  # embedding and head, with gradients
    logits = 2 * 596 * 10_000 * 4
    assert found["ce_library", 12100][1] - found["ce_library", 2100][1] > 2 * logits
    assert found["ce", 12100][1] - found["ce", 2100][1] < weights + 0.2 * logits


def test_rules_cost_the_passes_that_they_need():
    shape = Shape(tiles=1, **TINY)
    model, batch = shape.make_model(torch.float32, False), shape.make_batch("cpu", torch.float32)
    rules = {"power": RuleLoss(ProbabilityPower()), "posterior": RuleLoss(MismatchPosterior())}
    found = {
        name: count_operations(model, make_loss(name, model, batch, loss)) for name, loss in (OURS | rules).items()
    }
    assert found["power"] == found["ce"] == found["cal_cached"]
    # beyond CAL's second pass, the logits of the text alone at supervised positions, once
    assert found["posterior"] - found["cal"] == 2 * 2 * 12 * 64 * 2100


def test_the_command_writes_ratios_with_intervals(tmp_path):
    sizes = [f"shape.{name}={value}" for name, value in TINY.items()]
    result = cal("bench", *sizes, "repeats=2", "depth=1", "width=1", "ways=[ce,cal,excess]", folder=tmp_path)
    (path,) = tmp_path.glob("runs/bench/*/bench.json")
    found = json.loads(path.read_text())
    assert found["ratios"]["cal/ce"]["ci95"][0] <= found["ratios"]["cal/ce"]["median"]
    assert set(found["peak_memory_bytes"]) == {"ce", "cal", "excess"}
    assert found["floor"] == found["text_share"] * found["decoder_forward_share"]
    assert "the floor is" in result.stdout


@pytest.mark.slow
def test_several_shapes_are_measured_one_after_the_other(tmp_path):
    sizes = {name: value for name, value in TINY.items() if name != "hidden_size"}
    sizes |= {"heads": 8, "vision_hidden_size": 512}
    words = [f"shape.{name}={value}" for name, value in sizes.items()]
    cal("bench", "shape=llava15_7b,llava15_13b", *words, "repeats=1", "ways=[ce]", "memory=false", folder=tmp_path)
    found = [json.loads(path.read_text()) for path in tmp_path.glob("runs/bench/*/bench.json")]
    assert sorted(one["shape"]["hidden_size"] for one in found) == [4096 // 8, 5120 // 8]


def test_wrong_values_are_named(tmp_path):
    for word, named in (
        ("ways=[fast]", "ce_library, cal_released, cal, cal_blur, cal_cached, cal_masked, ce, column"),
        ("repeats=0", "at least 1"),
        ("width=5", "must divide"),
        ("shape.tiles=3", "1 (LLaVA-1.5)"),
        ("shape.batch_size=0", "at least 1"),
        ("shape=checkpoint depth=2", "a checkpoint has its own"),
        ("shape=checkpoint shape.path=nowhere", "no config.json there"),
    ):
        result = cal("bench", *word.split(), folder=tmp_path, check=False)
        assert result.returncode == 2 and named in result.stderr, result.stderr


@pytest.mark.slow
def test_answers_are_those_of_the_library_s_pipeline(tmp_path):
    script = Path(__file__).parents[2] / "benchmarks/answering.py"
    command = [sys.executable, str(script), "--scenes", "2", "--repeats", "1"]
    printed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "12 questions" in printed and "the same answers" in printed  # two images for each of six tasks
