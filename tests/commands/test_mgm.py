"""MGM, and LLaVA with Gemma, as typed: both stages from small parts, continued, in two processes, and converted."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    ConvNextConfig,
    ConvNextModel,
    GemmaConfig,
    GemmaForCausalLM,
)

from tests.cal import cal
from tests.models.mgm.test_model import AUX
from tests.models.mgm.test_source import publish
from tests.models.parts import save_language_model, save_vision_tower
from tests.models.published_kinds import TEXT, byte_tokenizer

SHORT = ["batch_size=4", "global_batch_size=8", "max_steps=4", "logging_steps=1", "save_steps=2", "workers=0"]
SHORT += ["bf16=false", "learning_rate=1e-3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mgm")
    save_language_model(folder / "vicuna")
    save_vision_tower(folder / "clip")
    torch.manual_seed(2)
    ConvNextModel(ConvNextConfig(**AUX)).save_pretrained(folder / "convnext")
    ConvNextModel(ConvNextConfig(**{**AUX, "drop_path_rate": 0.0})).save_pretrained(folder / "still")
    marks = {"sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"}
    tokenizer = byte_tokenizer(marks, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    GemmaForCausalLM(GemmaConfig(**TEXT, **ids, vocab_size=len(tokenizer))).save_pretrained(folder / "gemma")
    tokenizer.save_pretrained(folder / "gemma")
    cal("noise-inject", "ratio=0", "data.n=40", "data.text_only_share=0", "output=captions", folder=folder)
    cal("noise-inject", "ratio=0", "data.n=40", "data.text_only_share=0.3", "output=world", folder=folder)
    return folder


def parts_of(model):
    language_model = "gemma" if "2b" in model else "vicuna"
    parts = [f"model={model}", f"model.language_model={language_model}", "model.vision_tower=clip"]
    return parts + (["model.aux_vision_tower=convnext", "model.aux_image_size=64"] if model.startswith("mgm") else [])


def train(place, model, stage, data, *more):
    source = ["data=llava_json", f"data.path={data}/data.json", f"data.image_folder={data}/images"]
    result = cal("train", *parts_of(model), f"stage={stage}", *source, *SHORT, *more, folder=place)
    return place / result.stdout.strip().splitlines()[-1].split(": completed")[0]


def evaluate(place, run):
    words = ["benchmark.n=2", "benchmark.max_new_tokens=4"]
    cal("eval", f"checkpoint={run.relative_to(place)}", *words, folder=place)
    return json.loads((run / "eval/scenes/results.json").read_text())


def test_hd_starts_from_the_projector_of_the_normal_model(place):
    first = train(place, "mgm7b", "pretrain", "captions")
    weights = load_file(first / "projector/projector.safetensors")
    assert {name.split(".")[0] for name in weights} == {"mining", "multi_modal_projector"}
    assert not (first / "checkpoint").exists()
    projector = f"model.projector={first.relative_to(place)}/projector"
    second = train(place, "mgm7b_hd", "finetune", "world", projector)
    model = AutoModelForImageTextToText.from_pretrained(second / "checkpoint")
    assert model.config.model_type == "mgm" and model.config.crops == 2
    assert AutoProcessor.from_pretrained(second / "checkpoint").image_processor.crop_size["height"] == 64
    tower = ConvNextModel.from_pretrained(place / "convnext").state_dict()
    for name, value in model.model.aux_vision_tower.state_dict().items():
        assert torch.equal(value, tower[name])  # frozen
    assert not torch.equal(model.model.mining.query[1].weight, weights["mining.query.1.weight"])
    assert evaluate(place, second)["n"] == 12


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "objective"), [("mgm2b", "cal"), ("mgm7b", "ce"), ("mgm7b", "cal"), ("llava_gemma2b", "cal")]
)
def test_both_stages_continue_and_are_evaluated(place, model, objective):
    first = train(place, model, "pretrain", "captions", f"objective={objective}")
    projector = f"model.projector={first.relative_to(place)}/projector"
    second = train(place, model, "finetune", "world", projector, f"objective={objective}")
    other = second.with_name(f"{second.name}-other")
    shutil.copytree(second / "checkpoints/checkpoint-2", other / "checkpoints/checkpoint-2")
    where = f"hydra.run.dir={other.relative_to(place)}"
    again = train(place, model, "finetune", "world", projector, f"objective={objective}", where)
    for path in (second / "checkpoint").glob("*.safetensors"):
        assert (again / "checkpoint" / path.name).read_bytes() == path.read_bytes()
    assert evaluate(place, second)["n"] == 12


@pytest.mark.slow
def test_two_processes_learn_what_one_learns(place):
    still = "model.aux_vision_tower=still"  # stochastic depth draws for each process
    one = train(place, "mgm7b", "pretrain", "captions", "name=one", still)
    two = train(place, "mgm7b", "pretrain", "captions", "name=two", still, "launch=ddp", "launch.processes=2")
    found, expected = (load_file(run / "projector/projector.safetensors") for run in (two, one))
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-4), name


def test_a_published_checkpoint_becomes_a_model(place, tmp_path):
    run = train(place, "mgm7b", "finetune", "world", "model.projector=null", "name=converted", "max_steps=1")
    (path,) = (run / "checkpoint").glob("*.safetensors")
    (tmp_path / "published").mkdir()
    weights = {publish(name): value for name, value in load_file(path).items()}
    save_file(weights, tmp_path / "published/model.safetensors")
    for part in ("vicuna", "clip", "convnext"):
        (tmp_path / part).symlink_to(place / part)
    words = ["convert", *parts_of("mgm7b"), "checkpoint=published", "output=mine"]
    told = cal(*words, folder=tmp_path).stdout
    assert "parameters; use it as model.path=mine" in told
    (mine,) = (tmp_path / "mine").glob("*.safetensors")
    found, expected = load_file(mine), load_file(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    cal("eval", "checkpoint=mine", "benchmark.n=1", "benchmark.max_new_tokens=2", folder=tmp_path)
    again = cal(*words, folder=tmp_path, check=False)
    assert again.returncode == 2 and "output=mine: exists already" in again.stderr
    save_file({"model.stray": torch.ones(1)}, tmp_path / "published/model.safetensors")
    wrong = cal(*words[:-1], "output=other", folder=tmp_path, check=False)
    assert wrong.returncode == 2 and "is not a known weight; is it a published MGM?" in wrong.stderr
    assert not (tmp_path / "other").exists()
