"""What was loaded is what the checkpoint holds, or one sentence says what differs."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoTokenizer

from cal_cli.models.hub import fetch, load_model
from cal_cli.models.load import ModelSource, load_checkpoint
from cal_cli.models.parts import AdapterConfig, add_adapters, describe_rounding, freeze_parts
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import BASE, load_tiny
from cal_cli.training.record import verify_weights
from tests.cal import cal
from tests.models.published_kinds import save

HEAD = "language_model.lm_head.weight"


def copy_base(folder, weights=None, config=None, processor=None):
    """The shipped checkpoint, with other weights or values."""
    shutil.copytree(BASE, folder)
    if weights is not None:
        found = weights(load_file(folder / "model.safetensors"))
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
    for name, change in (("config.json", config), ("processor_config.json", processor)):
        if change is not None:
            values = json.loads((folder / name).read_text())
            change(values)
            (folder / name).write_text(json.dumps(values))
    return folder


def add_tokens(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<{number}>" for number in range(60)])
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"weights": lambda found: {name: value for name, value in found.items() if "projector" not in name}},
            r"4 weights of the model are missing, such as model\.multi_modal_projector",
        ),
        (
            {"weights": lambda found: {f"module.{name}": value for name, value in found.items()}},
            "89 weights of the model are missing, .* 89 weights are left over, such as module.* that the wrapper holds",
        ),
        ({"weights": lambda found: found | {"lora_A.weight": torch.ones(2)}}, "left over, such as lora_A"),
        (
            {"weights": lambda found: found | {HEAD: found[HEAD] / 0}},
            r"1 of its weights hold NaN or infinite values, such as .*lm_head",
        ),
        ({"config": lambda config: config["text_config"].update(vocab_size=1500)}, r"by its config: .*resize_token"),
        ({"config": lambda config: config.update(image_token_index=7)}, "image token is 3 in its processor and 7"),
        ({"processor": lambda values: values.pop("patch_size")}, "no patch_size: write 16"),
        ({"processor": lambda values: values.pop("num_additional_image_tokens")}, "15 tokens of an image, .* 16"),
        ({"processor": lambda values: values.update(vision_feature_select_strategy="full")}, "17 tokens of an image"),
        (
            {"processor": lambda values: values["image_processor"].update(crop_size={"height": 32, "width": 32})},
            r"does not read the images that its processor makes: Input image size \(32\*32\) doesn't match",
        ),
        ({"processor": lambda values: values["image_processor"].update(image_mean=[0.5])}, "mean must have 3 elements"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused(changes, problem, tmp_path):
    folder = copy_base(tmp_path / "base", **changes)
    for load in (ModelSource(str(folder)).load, lambda: load_checkpoint(str(folder))):
        with pytest.raises(InputError, match=problem):
            load()


@pytest.mark.parametrize(
    ("name", "change"), [("smolvlm", {"image_std": [0.5]}), ("gemma3", {"size": {"height": 24, "width": 24}})]
)
def test_images_that_the_vision_tower_of_another_family_does_not_read_are_refused(name, change, tmp_path):
    folder = save(name, tmp_path / name)
    load_checkpoint(str(folder))
    values = json.loads((folder / "processor_config.json").read_text())
    values["image_processor"] |= change
    (folder / "processor_config.json").write_text(json.dumps(values))
    with pytest.raises(InputError, match="does not read the images that its processor makes: "):
        load_checkpoint(str(folder))


def test_a_file_that_git_lfs_has_not_downloaded_is_named(tmp_path):
    folder = copy_base(tmp_path / "base")
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n")
    with pytest.raises(InputError, match=r"model\.safetensors is a pointer of Git LFS.*git lfs pull"):
        load_checkpoint(str(folder))


@pytest.mark.slow
def test_a_tokenizer_with_more_tokens_than_embeddings_is_refused_by_every_command(tmp_path):
    add_tokens(copy_base(tmp_path / "base"))
    for words in (
        ["train", "data.n=8", "model.path=base"],
        ["eval", "checkpoint=base"],
        ["data-audit", "data.n=8", "checkpoint=base"],
    ):
        refused = cal(*words, folder=tmp_path, check=False)
        assert refused.returncode == 2 and "call model.resize_token_embeddings" in refused.stderr
    for words in (["inspect", "checkpoint=base"], ["token-weight-dump", "checkpoint=base"]):
        refused = cal(*words, folder=tmp_path, check=False)
        assert refused.returncode == 2 and "call model.resize_token_embeddings" in refused.stderr


def test_a_projector_that_is_given_may_be_missing(tmp_path):
    model, _ = load_tiny()
    folder = copy_base(tmp_path / "base", lambda w: {name: v for name, v in w.items() if "projector" not in name})
    (tmp_path / "projector").mkdir()
    inner = {k: v.contiguous() for k, v in model.model.state_dict().items() if k.startswith("multi_modal_projector.")}
    save_file(inner, tmp_path / "projector" / "projector.safetensors")
    found, _ = ModelSource(str(folder), projector=str(tmp_path / "projector")).load()
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_adapter_is_merged_into_its_base(tmp_path):
    model, _ = load_tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy_base(tmp_path / "base")
    rates = freeze_parts(model, {"vision_tower": 0.0}, adapted=True)
    adapted = add_adapters(model, AdapterConfig(4, 8, 0.0, None), rates)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    expected = adapted.merge_and_unload().state_dict()
    for load in (ModelSource(str(tmp_path / "adapter")).load, lambda: load_checkpoint(str(tmp_path / "adapter"))):
        found, _ = load()
        assert found.state_dict().keys() == expected.keys()
        assert all(torch.equal(value, found.state_dict()[name]) for name, value in expected.items())
    assert any(not torch.equal(value, expected[name]) for name, value in before.items())
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    del weights[next(name for name in weights if "lora_B" in name)]
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(InputError, match="missing adapter keys"):
        load_checkpoint(str(tmp_path / "adapter"))


def test_quantised_weights_are_not_trained(tmp_path):
    pytest.importorskip("bitsandbytes")
    kinds = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
    folder = copy_base(tmp_path / "base", config=lambda config: config.update(quantization_config=kinds))
    with pytest.raises(InputError, match="quantised and cannot be trained"):
        ModelSource(str(folder)).load()


def test_what_was_saved_is_verified(tmp_path):
    model, _ = load_tiny()
    verify_weights(type(model), BASE)
    folder = copy_base(tmp_path / "base", lambda found: dict(list(found.items())[1:]))
    with pytest.raises(RuntimeError, match="1 of its weights are not the model's"):
        verify_weights(type(model), folder)


@pytest.mark.parametrize(("rate", "lost"), [(1e-6, True), (1.0, False)])
def test_steps_that_bfloat16_would_lose_are_reported(rate, lost):
    model, _ = load_tiny()
    model = model.to(torch.bfloat16)
    rates = freeze_parts(model, {"vision_tower": 0.0})
    assert bool(describe_rounding(model, rates, rate)) == lost
    # the claim itself: weights less a step, in bfloat16
    moved = total = 0
    for parameter in model.parameters():
        if parameter.requires_grad:
            step = parameter.detach().float() + rate * parameter.detach().sign()
            moved += int((step.to(torch.bfloat16) != parameter.detach()).sum())
            total += parameter.numel()
    assert (moved < total / 2) == lost


def test_a_part_of_a_larger_checkpoint_leaves_the_rest(tmp_path):
    from transformers import CLIPVisionModel

    from tests.models.parts import save_vision_tower

    tower = load_model(CLIPVisionModel, save_vision_tower(tmp_path / "clip"), "key", torch.float32, part=True)
    assert type(tower) is CLIPVisionModel


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ("X requires the Torchvision library but it was not found", "needs the package torchvision: pip install 'cal"),
        ("{name}/config.json is broken", "the folder cannot be loaded"),  # its own name is no reason
    ],
)
def test_a_package_of_the_library_that_is_missing_is_named(problem, said, tmp_path, monkeypatch):
    monkeypatch.setattr("cal_cli.models.hub.find_spec", lambda package: None)
    folder = tmp_path / "torchvision"
    folder.mkdir()

    def load(name):
        raise ImportError(problem.format(name=name))

    with pytest.raises(InputError, match=said):
        fetch(load, str(folder), "model.path")


@pytest.mark.parametrize("words", [["train", "model=hf", "model.path=q"], ["data-audit", "checkpoint=q"]])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "inkling2"}, "hybrid_sliding layers"),
        ({"model_type": "git"}, "names? no image_token_id"),
        ({"model_type": "qwen3_vl_moe", "text_config": {"output_router_logits": True}}, "output_router_logits=false"),
    ],
)
def test_what_no_image_can_be_removed_from_is_refused_before_data_are_read(words, config, reason, tmp_path):
    AutoConfig.for_model(**config).save_pretrained(tmp_path / "q")
    refused = cal(*words, "data=llava_json", "data.path=missing.json", folder=tmp_path, check=False)
    assert refused.returncode == 2 and re.search(reason, refused.stderr)
