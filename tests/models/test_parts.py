"""LoRA through the command: adapters beside a projector, merged into a checkpoint that plain transformers loads."""

import json
import shutil

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, LlamaConfig, LlamaForCausalLM

from cal_cli.models.parts import (
    AdapterConfig,
    add_adapters,
    count_trainable,
    dequantize,
    find_adapted_layers,
    freeze_parts,
    group_parameters,
    quantize,
)
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny
from tests.cal import cal
from tests.objective.coverage import LIBRARY
from tests.objective.families import NOT_APPLICABLE, make, make_model

WORDS = ["peft=lora", "peft.r=4", "peft.alpha=8", "parts.vision_tower=0", "data.n=64", "batch_size=8", "save_steps=4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    cal("train", *WORDS, "launch.processes=1", folder=folder)
    (run,) = (path.parent for path in folder.glob("runs/train/*/*/summary.json"))
    return run


def test_the_checkpoint_is_the_base_with_its_adapters_merged(run):
    base, _ = load_tiny()
    merged = AutoModelForImageTextToText.from_pretrained(run / "checkpoint").state_dict()
    alone = load_file(run / "adapter/adapter_model.safetensors")
    linear = [name.removesuffix(".lora_A.weight") for name in alone if name.endswith(".lora_A.weight")]
    assert len(linear) == 3 * 7  # of each layer: four of attention, three of the perceptron
    for name in linear:
        added = alone[f"{name}.lora_B.weight"] @ alone[f"{name}.lora_A.weight"] * (8 / 4)
        own = f"{name.removeprefix('base_model.model.')}.weight"
        torch.testing.assert_close(merged[own], base.state_dict()[own] + added)
        assert added.abs().max() > 0
    changed = {name for name, value in base.state_dict().items() if not torch.equal(merged[name], value)}
    others = changed - {f"{name.removeprefix('base_model.model.')}.weight" for name in linear}
    assert others and all("multi_modal_projector" in name for name in others)


def test_the_summary_counts_adapters_and_projector(run):
    summary = json.loads((run / "summary.json").read_text())
    saved = load_file(run / "adapter/adapter_model.safetensors")
    assert summary["trainable_parameters"] == sum(value.numel() for value in saved.values())


def test_adapters_load_through_peft_and_give_the_same_logits(run):
    adapted = PeftModel.from_pretrained(load_tiny()[0], run / "adapter").eval()
    merged = AutoModelForImageTextToText.from_pretrained(run / "checkpoint").eval()
    words = torch.tensor([[1, 50, 60, 70, 80]])
    torch.testing.assert_close(adapted(input_ids=words).logits, merged(input_ids=words).logits, atol=1e-4, rtol=1e-4)


def test_a_run_with_adapters_continues_to_the_same_weights(run, tmp_path):
    here = tmp_path / run.relative_to(run.parents[3])

    shutil.copytree(run / "checkpoints/checkpoint-4", here / "checkpoints/checkpoint-4")
    assert "continuing from checkpoint-4" in cal("train", *WORDS, "launch.processes=1", folder=tmp_path).stdout
    one, two = (load_file(folder / "checkpoint/model.safetensors") for folder in (run, here))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.fixture(scope="module")
def quantized_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("qlora")
    cal("train", "peft=qlora", *WORDS[1:], "launch.processes=1", folder=folder)
    (run,) = (path.parent for path in folder.glob("runs/train/*/*/summary.json"))
    return run


def test_qlora_learns_over_rounded_weights_and_merges_into_them(quantized_run):
    base = load_tiny()[0].state_dict()
    merged = AutoModelForImageTextToText.from_pretrained(quantized_run / "checkpoint").state_dict()
    alone = load_file(quantized_run / "adapter/adapter_model.safetensors")
    linear = [name.removesuffix(".lora_A.weight") for name in alone if name.endswith(".lora_A.weight")]
    assert len(linear) == 3 * 7
    for name in linear:
        own = f"{name.removeprefix('base_model.model.')}.weight"
        rounded = dequantize_4bit(*quantize_4bit(base[own], quant_type="nf4", compress_statistics=True))
        assert not torch.allclose(rounded, base[own], atol=1e-3)
        added = alone[f"{name}.lora_B.weight"] @ alone[f"{name}.lora_A.weight"] * (8 / 4)
        assert added.abs().max() > 0
        torch.testing.assert_close(merged[own], rounded + added)
    summary = json.loads((quantized_run / "summary.json").read_text())
    assert summary["trainable_parameters"] == sum(value.numel() for value in alone.values())
    assert summary["parameters"] > sum(value.numel() for value in base.values())  # not the bytes they are packed in


def test_a_run_over_rounded_weights_continues_to_the_same_weights(quantized_run, tmp_path):
    here = tmp_path / quantized_run.relative_to(quantized_run.parents[3])
    shutil.copytree(quantized_run / "checkpoints/checkpoint-4", here / "checkpoints/checkpoint-4")
    told = cal("train", "peft=qlora", *WORDS[1:], "launch.processes=1", folder=tmp_path).stdout
    assert "continuing from checkpoint-4" in told
    one, two = (load_file(folder / "checkpoint/model.safetensors") for folder in (quantized_run, here))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_what_is_beside_the_weights_survives_rounding():
    sizes = {"vocab_size": 32, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=1, attention_bias=True))
    name = "model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    torch.nn.init.normal_(layer.bias)
    weight, bias, other = layer.weight.clone(), layer.bias.clone(), model.lm_head.weight.clone()
    quantize(model, [name])
    assert model.get_submodule(name).weight.dtype == torch.uint8
    dequantize(model)
    whole = model.get_submodule(name)
    assert torch.equal(whole.bias, bias) and torch.equal(model.lm_head.weight, other)
    assert whole.weight.dtype == weight.dtype and 0 < (whole.weight - weight).abs().max() < 0.2 * weight.abs().max()


def test_wrong_values_are_told(tmp_path):
    for words, said in (
        (["peft=lora"], "give parts.vision_tower=0"),
        (["peft=lora", "parts.vision_tower=0", "peft.r=0"], "r=0 must be at least 1"),
        (["peft=qlora", "parts.vision_tower=0", "peft.bits=3"], "peft.bits=3: allowed are 4"),
        (["peft=laro"], "did you mean lora?"),
    ):
        result = cal("train", *words, "data.n=8", folder=tmp_path, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr


def test_the_projector_is_found_within_the_tower_of_qwen():
    model, _ = make("qwen2_5_vl")
    groups = group_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    projector = {names[id(parameter)] for parameter in groups["projector"]}
    assert projector == {name for name in names.values() if ".visual.merger." in name}
    freeze_parts(model, {"vision_tower": 0.0, "image_newline": None})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert projector < trained and not any("visual." in name for name in trained - projector)
    counts = count_trainable(model)
    assert counts["projector"] == sum(p.numel() for p in model.model.visual.merger.parameters())
    assert counts["vision_tower"] == counts["image_newline"] == 0
    adapted = add_adapters(model, AdapterConfig(2, 4, 0.0, None), freeze_parts(model, {"vision_tower": 0.0}, True))
    assert count_trainable(adapted.get_base_model())["projector"] == counts["projector"]


@pytest.mark.parametrize(
    ("build", "rates", "adapted", "problem"),
    [
        ("llava", {"image_newline": 1.0}, False, "parts.image_newline=1.0: .* has no such part"),
        ("llava_next", {"image_newline": 1.0, "vision_tower": 0.0}, True, "peft cannot train it"),
        ("llava", {"projector": -1.0}, False, "must be at least 0"),
    ],
)
def test_rates_that_match_nothing_are_refused(build, rates, adapted, problem):
    with pytest.raises(InputError, match=problem):
        freeze_parts(make(build)[0], rates, adapted)


def test_the_newline_has_the_rate_of_the_projector():
    model, _ = make("llava_next")
    assert freeze_parts(model, {"projector": 0.5, "image_newline": None})["image_newline"] == 0.5
    assert count_trainable(model)["image_newline"] == model.model.image_newline.numel()
    assert freeze_parts(model, {"image_newline": None}, adapted=True)["image_newline"] == 0.0
    assert count_trainable(model)["image_newline"] == 0


def test_a_run_reports_what_it_trains(run):
    parts = json.loads((run / "summary.json").read_text())["trainable_by_part"]
    saved = load_file(run / "adapter/adapter_model.safetensors")
    projector = sum(value.numel() for name, value in saved.items() if "projector" in name)
    assert parts == {
        "language_model": sum(value.numel() for value in saved.values()) - projector,
        "projector": projector,
        "image_newline": 0,
        "vision_tower": 0,
    }


# types that feed pixels, or codes of images, straight into their decoder
NO_PROJECTOR = ("blip", "chameleon", "emu3", "git", "idefics", "inkling_mm_model")
NO_TOWER = ("fuyu", "gemma4_unified")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in LIBRARY if name not in NOT_APPLICABLE])
def test_the_parts_of_every_type(name):
    model = make_model(name)
    groups = group_parameters(model)
    assert bool(groups["projector"]) == (name not in NO_PROJECTOR)
    assert bool(groups["vision_tower"]) == (name not in NO_TOWER)
    names = {id(parameter): field for field, parameter in model.named_parameters()}
    for part, word in (("vision_tower", "lm_head"), ("projector", "blocks"), ("language_model", "vision_tower")):
        assert not any(word in names[id(parameter)] for parameter in groups[part])
    layers = find_adapted_layers(model)
    assert layers and not any(
        word in layer for layer in layers for word in ("visual.", "vision_tower", "vision_model", "audio")
    )
