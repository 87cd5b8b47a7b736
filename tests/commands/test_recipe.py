"""The paper's recipe from parts with the files of the published ones: both stages, a resumption, an evaluation."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests.cal import ENVIRONMENT, cal
from tests.models.parts import save_like_clip, save_like_vicuna

SHORT = ["batch_size=4", "global_batch_size=8", "max_steps=4", "logging_steps=1", "save_steps=2", "workers=0"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipe")
    save_like_vicuna(folder / "vicuna")
    save_like_clip(folder / "clip")
    cal("noise-inject", "ratio=0", "data.n=40", "data.text_only_share=0", "output=captions", folder=folder)
    cal("noise-inject", "ratio=0", "data.n=40", "data.text_only_share=0.3", "output=world", folder=folder)
    return folder


def words(model, stage, data, *more):
    parts = [f"model={model}", "model.language_model=vicuna", "model.vision_tower=clip", "bf16=false"]
    source = ["data=llava_json", f"data.path={data}/data.json", f"data.image_folder={data}/images"]
    return ["train", *parts, f"stage={stage}", *source, *SHORT, *more]


def run_of(result, folder):
    return folder / result.stdout.strip().splitlines()[-1].split(": completed")[0]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["llava7b", "llava_next7b"])
def test_both_stages_start_finish_resume_and_are_evaluated(place, model):
    first = run_of(cal(*words(model, "pretrain", "captions"), folder=place), place)
    projector = f"model.projector={first.relative_to(place)}/projector"
    second = run_of(cal(*words(model, "finetune", "world", projector), folder=place), place)
    newline = load_file(first / "projector/projector.safetensors").get("image_newline")
    assert (newline is not None) == (model == "llava_next7b")
    if newline is not None:  # frozen in the first stage, so that it is that of the first checkpoint too
        before = load_file(first / "checkpoints/checkpoint-2/projector.safetensors")["image_newline"]
        assert torch.equal(newline, before)

    other = second.with_name("other")
    shutil.copytree(second / "checkpoints/checkpoint-2", other / "checkpoints/checkpoint-2")
    where = f"hydra.run.dir={other.relative_to(place)}"
    resumed = cal(*words(model, "finetune", "world", projector), where, folder=place)
    assert "continuing from checkpoint-2" in resumed.stdout
    names = [path.name for path in (second / "checkpoint").glob("*.safetensors")]
    assert names
    for name in names:
        assert (other / "checkpoint" / name).read_bytes() == (second / "checkpoint" / name).read_bytes()

    loaded = AutoModelForImageTextToText.from_pretrained(second / "checkpoint")
    assert loaded.generation_config.temperature == 0.9 and loaded.generation_config.do_sample
    assert AutoProcessor.from_pretrained(second / "checkpoint").tokenizer.pad_token == "<unk>"
    cal("eval", f"checkpoint={second.relative_to(place)}", "benchmark.n=4", folder=place)
    results = json.loads((second / "eval/scenes/results.json").read_text())
    assert results["n"] == 24 and results["generation"]["do_sample"] is False


@pytest.mark.slow
def test_a_failure_in_saving_leaves_the_run_resumable(place, tmp_path):
    """The last step's folder cannot be written; the summary says that the run failed, and it goes on from step 2."""
    for name in ("vicuna", "clip", "captions"):
        shutil.copytree(place / name, tmp_path / name)
    code = (
        "from cal_cli.training.run_trainer import RunTrainer\n"
        "save = RunTrainer._save_optimizer_and_scheduler\n"
        "def fail(self, folder):\n"
        "    if self.state.global_step == 4:\n"
        "        raise ValueError('cannot be saved')\n"
        "    save(self, folder)\n"
        "RunTrainer._save_optimizer_and_scheduler = fail\n"
        "from cal_cli.cli import main\n"
        "main()\n"
    )
    (tmp_path / "failing.py").write_text(code)
    typed = words("llava7b", "pretrain", "captions", "name=failing")
    result = subprocess.run(
        [sys.executable, "failing.py", *typed], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 1 and "cannot be saved" in result.stderr
    (run,) = (path.parent for path in tmp_path.glob("runs/train/failing/*/summary.json"))
    assert json.loads((run / "summary.json").read_text())["status"] == "failed"
    assert (run / "checkpoints/checkpoint-4").exists() and not (run / "projector").exists()
    again = cal(*typed, folder=tmp_path)
    assert "continuing from checkpoint-2" in again.stdout and ": completed, 4 steps" in again.stdout


KINDS = {
    "from scratch": ["model=tiny", "model.from_scratch=true"],
    "LoRA": ["model=tiny", "peft=lora", "peft.r=4", "parts.vision_tower=0"],
    "QLoRA": ["model=tiny", "peft=qlora", "peft.r=4", "parts.vision_tower=0"],
    "assembled": ["model=assembled", "model.language_model=vicuna", "model.vision_tower=clip"],
}


def train_all_kinds(place, folder):
    """Train each kind in a folder of its own, in forks of this process."""
    for kind, more in KINDS.items():
        (folder / kind).mkdir(parents=True)
        for part in ("vicuna", "clip"):
            (folder / kind / part).symlink_to(place / part)
        one_thread = "import torch; torch.set_num_threads(1)"
        cal("train", *more, "data.n=16", "batch_size=8", "seed=3", folder=folder / kind, before=one_thread)


@pytest.mark.slow
def test_every_kind_of_run_has_the_same_bits_twice(place, tmp_path):
    """In forks of two processes, whose hashes of strings differ."""
    train_all_kinds(place, tmp_path / "one")
    code = "import pathlib, sys; from tests.commands.test_recipe import train_all_kinds as train; "
    code += "train(*map(pathlib.Path, sys.argv[1:]))"
    subprocess.run([sys.executable, "-c", code, place, tmp_path / "two"], check=True, env=ENVIRONMENT)
    for kind in KINDS:
        found = []
        for name in ("one", "two"):
            (checkpoint,) = (tmp_path / name / kind).glob("runs/train/*/*/checkpoint")
            found.append({path.name: path.read_bytes() for path in checkpoint.glob("*.safetensors")})
        assert found[0] and found[0] == found[1], kind
