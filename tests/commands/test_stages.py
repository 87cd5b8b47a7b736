"""The two stages of LLaVA through the command, from small parts of the real classes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, CLIPVisionModel

from cal_cli.models.parts import freeze_parts, group_parameters, set_rates
from tests.cal import cal
from tests.models.parts import save_language_model, save_vision_tower

SHORT = ["max_steps=3", "batch_size=4", "logging_steps=1", "save_steps=2", "global_batch_size=8", "name=llava"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with parts of a LLaVA and a data set of 40 samples."""
    folder = tmp_path_factory.mktemp("stages")
    save_language_model(folder / "llama")
    save_vision_tower(folder / "clip")
    cal("noise-inject", "ratio=0", "data.n=40", "data.text_only_share=0", "output=captions", folder=folder)
    cal("noise-inject", "ratio=0", "data.n=40", "data.text_only_share=0.3", "output=world", folder=folder)
    return folder


def words(stage, data, *more):
    parts = ["model=llava7b", "model.language_model=llama", "model.vision_tower=clip"]
    source = ["data=llava_json", f"data.path={data}/data.json", f"data.image_folder={data}/images"]
    return ["train", f"stage={stage}", *parts, *source, *SHORT, *more]


def run_of(told, folder):
    return folder / told.stdout.strip().splitlines()[-1].split(": completed")[0]


@pytest.fixture(scope="module")
def pretrained(place):
    return run_of(cal(*words("pretrain", "captions"), folder=place), place)


def test_pretraining_changes_and_saves_the_projector_alone(pretrained, place):
    assert not (pretrained / "checkpoint").exists()
    saved = load_file(pretrained / "projector/projector.safetensors")
    assert {name.split(".")[0] for name in saved} == {"multi_modal_projector"}
    summary = json.loads((pretrained / "summary.json").read_text())
    assert summary["trainable_parameters"] == sum(value.numel() for value in saved.values())
    assert summary["samples_seen"] == 24
    last = pretrained / "checkpoints/checkpoint-3"
    assert not (last / "model.safetensors").exists()
    assert all(torch.equal(value, saved[name]) for name, value in load_file(last / "projector.safetensors").items())


@pytest.mark.slow
def test_a_pretraining_that_was_stopped_ends_with_the_same_projector(pretrained, place):
    other = pretrained.with_name("other")
    shutil.copytree(pretrained / "checkpoints/checkpoint-2", other / "checkpoints/checkpoint-2")
    resumed = cal(*words("pretrain", "captions"), f"hydra.run.dir={other.relative_to(place)}", folder=place)
    assert "continuing from checkpoint-2" in resumed.stdout
    one, two = (load_file(folder / "projector/projector.safetensors") for folder in (pretrained, other))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize("aspect", ["pad", "anyres"])
def test_finetuning_goes_on_from_the_projector(pretrained, place, aspect):
    more = [f"model.projector={pretrained.relative_to(place)}/projector", f"model.image_aspect_ratio={aspect}"]
    more += ["parts.vision_tower=0.1"] if aspect == "anyres" else []
    run = run_of(cal(*words("finetune", "world", *more, "group_by_modality_length=true"), folder=place), place)
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint")
    assert AutoProcessor.from_pretrained(run / "checkpoint").image_token_id == model.config.image_token_id
    before = load_file(pretrained / "projector/projector.safetensors")["multi_modal_projector.linear_1.weight"]
    difference = (model.model.multi_modal_projector.linear_1.weight - before).abs().max()
    assert 0 < difference < 1e-3
    tower = CLIPVisionModel.from_pretrained(place / "clip")
    same = all(
        torch.equal(value, dict(model.model.vision_tower.named_parameters())[name])
        for name, value in tower.named_parameters()
    )
    assert same == (aspect == "pad")
    words_before = AutoModelForCausalLM.from_pretrained(place / "llama").lm_head.weight
    assert not torch.equal(model.lm_head.weight[: len(words_before)], words_before)


def test_wrong_values_are_told(place):
    for more, said in (
        (["parts.projector=0"], "nothing is left to train"),
        (["parts.vision_tower=-1"], "must be at least 0"),
        (["+parts.eyes=1"], "parts are language_model, projector, image_newline, vision_tower"),
        (["global_batch_size=0"], "must be at least 1"),
        (["model.language_model=nowhere/none"], "run `hf download nowhere/none`"),
        (["model.projector=none"], "give the projector/ of a run with stage=pretrain"),
    ):
        result = cal(*words("pretrain", "captions", "name=wrong", *more), folder=place, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr
    assert not list(Path(place).glob("runs/train/wrong/*/summary.json"))


def test_each_part_learns_at_its_own_rate(model):
    freeze_parts(model, {"language_model": 1.0, "projector": 2.0, "vision_tower": 0.1})
    optimizer = torch.optim.AdamW([{"params": list(model.parameters()), "weight_decay": 0.1}], lr=0.01)
    set_rates(optimizer, model, {"language_model": 1.0, "projector": 2.0, "vision_tower": 0.1})
    assert [round(group["lr"], 5) for group in optimizer.param_groups] == [0.02, 0.01, 0.001]
    assert all(group["weight_decay"] == 0.1 for group in optimizer.param_groups)
    expected = group_parameters(model)
    found = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
    assert found == [{id(p) for p in expected[name]} for name in ("projector", "language_model", "vision_tower")]
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("vision_tower" in names[id(p)] for p in expected["vision_tower"])
    assert all("multi_modal_projector" in names[id(p)] for p in expected["projector"])
    assert sum(len(members) for members in expected.values()) == len(list(model.parameters()))


PAPER = {  # the paper's hyperparameters, by model and stage
    ("llava7b", "pretrain"): ("vicuna-7b-v1.5", "square", "plain", 256, 1e-3, 2048, False, (0, 1, 0)),
    ("llava7b", "finetune"): ("vicuna-7b-v1.5", "pad", "v1", 128, 2e-5, 2048, True, (1, 1, 0)),
    ("llava13b", "pretrain"): ("vicuna-13b-v1.5", "square", "plain", 256, 1e-3, 2048, False, (0, 1, 0)),
    ("llava13b", "finetune"): ("vicuna-13b-v1.5", "pad", "v1", 128, 2e-5, 2048, True, (1, 1, 0)),
    ("llava_next7b", "pretrain"): ("vicuna-7b-v1.5", "anyres", "plain", 256, 1e-3, 4096, False, (0, 1, 0)),
    ("llava_next7b", "finetune"): ("vicuna-7b-v1.5", "anyres", "v1", 128, 2e-5, 4096, True, (1, 1, 0.1)),
    ("llava_next13b", "pretrain"): ("vicuna-13b-v1.5", "anyres", "plain", 256, 1e-3, 4096, False, (0, 1, 0)),
    ("llava_next13b", "finetune"): ("vicuna-13b-v1.5", "anyres", "v1", 128, 2e-5, 4096, True, (1, 1, 0.1)),
}
MGM = {  # MGM's and LLaVA-Gemma's
    ("mgm2b", "pretrain"): ("google/gemma-2b-it", "square", "gemma", 256, 1e-3, 2048, False, (0, 1, 0)),
    ("mgm2b", "finetune"): ("google/gemma-2b-it", "pad", "gemma", 128, 2e-5, 2048, True, (1, 1, 0)),
    ("mgm7b", "pretrain"): ("vicuna-7b-v1.5", "square", "plain", 256, 1e-3, 2048, False, (0, 1, 0)),
    ("mgm7b", "finetune"): ("vicuna-7b-v1.5", "pad", "v1", 128, 2e-5, 2048, True, (1, 1, 0)),
    ("mgm13b", "finetune"): ("vicuna-13b-v1.5", "pad", "v1", 128, 2e-5, 2048, True, (1, 1, 0)),
    ("mgm7b_hd", "finetune"): ("vicuna-7b-v1.5", "pad", "v1", 128, 2e-5, 4096, True, (1, 1, 0)),
    ("mgm13b_hd", "finetune"): ("vicuna-13b-v1.5", "pad", "v1", 128, 2e-5, 4096, True, (1, 1, 0)),
    ("llava_gemma2b", "pretrain"): ("google/gemma-2b-it", "square", "plain", 256, 1e-3, 2048, False, (0, 1, 0)),
    ("llava_gemma2b", "finetune"): ("google/gemma-2b-it", "pad", "gemma", 128, 2e-5, 2048, True, (1, 1, 0)),
}
DATA = {
    "pretrain": ("data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json", "data/LLaVA-Pretrain/images"),
    "finetune": ("data/LLaVA-Instruct-150K/llava_v1_5_mix665k.json", "data"),
}


def composed(folder, *words):
    return yaml.safe_load(cal("train", *words, "--cfg", "job", folder=folder).stdout)


def list_recipe(config):
    """The hyperparameters in the order of `PAPER`."""
    model = config["model"]
    return (
        model["language_model"].removeprefix("lmsys/"),
        model["image_aspect_ratio"],
        model["template"],
        config["global_batch_size"],
        config["learning_rate"],
        config["max_length"],
        config["group_by_modality_length"],
        tuple(config["parts"][part] for part in ("language_model", "projector", "vision_tower")),
    )


@pytest.mark.parametrize(("name", "stage"), PAPER)
def test_a_model_composes_the_paper_s_recipe_of_its_stage(name, stage, tmp_path):
    config = composed(tmp_path, f"model={name}", *([f"stage={stage}"] if stage == "pretrain" else []))
    model = config["model"]
    assert model["vision_tower"] == "openai/clip-vit-large-patch14-336" and model["path"] is None
    assert list_recipe(config) == PAPER[name, stage]
    shared = {"epochs": 1.0, "weight_decay": 0.0, "warmup_ratio": 0.03, "bf16": True, "gradient_checkpointing": True}
    shared |= {"max_grad_norm": 0.0, "stage": stage, "name": name}
    assert {key: config[key] for key in shared} == shared
    assert (config["objective"]["alpha"], config["objective"]["beta"], config["objective"]["window"]) == (1, 5, 3)
    sources = config["data"].get("sources", [config["data"]])
    assert (sources[0]["path"], sources[0]["image_folder"]) == DATA[stage]
    assert len(sources) == (4 if (name[:10], stage) == ("llava_next", "finetune") else 1)
    assert bool(model["projector"]) == (stage == "finetune")


@pytest.mark.parametrize(("name", "stage"), MGM)
def test_mgm_and_llava_with_gemma_compose_their_recipes(name, stage, tmp_path):
    config = composed(tmp_path, f"model={name}", f"stage={stage}")
    model = config["model"]
    assert list_recipe(config) == MGM[name, stage]
    assert config["name"] == name and config["max_grad_norm"] == 0.0
    normal = name.removesuffix("_hd")
    projector = f"runs/train/{normal}/model-{normal}__stage-pretrain/projector" if stage == "finetune" else None
    assert (model["projector"] or "").replace("${name}", name) == (projector or "")
    assert model.get("crops") == (None if name == "llava_gemma2b" else 2 if name.endswith("_hd") else 1)
    file = {"pretrain": "mgm_pretrain.json", "finetune": "mgm_instruction.json"}[stage]
    assert config["data"]["path"].endswith(file) == (name != "llava_gemma2b")


def test_what_is_typed_wins_over_the_recipe(tmp_path):
    words = ("model=llava13b", "data=scenes", "learning_rate=1e-4", "model.template=plain", "parts.vision_tower=0.5")
    config = composed(tmp_path, *words)
    assert config["data"]["n"] == 19200 and config["learning_rate"] == 1e-4
    assert config["model"]["template"] == "plain" and config["parts"]["vision_tower"] == 0.5
    assert composed(tmp_path, "model=hf", "stage=pretrain")["learning_rate"] == 1e-3  # for any other model too
    assert composed(tmp_path)["learning_rate"] == 3e-4 and composed(tmp_path)["stage"] is None


@pytest.mark.slow
def test_the_second_stage_finds_the_projector_of_the_first_by_default(place):
    first = run_of(cal(*words("pretrain", "captions", "name=found"), folder=place), place)
    shutil.copytree(first, place / "runs/train/found/model-llava7b__stage-pretrain")
    run = run_of(cal(*words("finetune", "world", "name=found"), folder=place), place)
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint").model
    before = load_file(first / "projector/projector.safetensors")["multi_modal_projector.linear_1.weight"]
    assert 0 < (model.multi_modal_projector.linear_1.weight - before).abs().max() < 1e-3
