"""The command line: help that names what there is, and one sentence with exit code 2 for anything wrong."""

import gc
import re
import weakref
from collections import UserDict

import pytest
import yaml
from omegaconf import OmegaConf

from cal_cli.cli import carry_out
from tests.cal import cal

COMMANDS = (
    "train",
    "eval",
    "noise-inject",
    "token-weight-dump",
    "report",
    "bench",
    "data-check",
    "data-audit",
    "inspect",
    "study",
    "convert",
)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_choices_keys_and_an_example(command, tmp_path):
    text = cal(command, "--help", folder=tmp_path).stdout
    assert "Choices (group=choice)" in text
    assert f"  cal {command}" in text
    assert len(re.findall(r"^  [\w.]+=", text, re.MULTILINE)) >= 5
    if command == "train":
        assert "objective: cal, cal_blur, cal_cached, cal_masked, cal_released, ce, column, dependence, dft" in text
        assert len(re.findall(r"^  [\w.]+=", text, re.MULTILINE)) == 10


@pytest.mark.parametrize("command", COMMANDS[:-1])  # cal study passes most of its words on
def test_every_key_that_help_names_exists(command, tmp_path):
    text = cal(command, "--help", folder=tmp_path).stdout
    keys = re.findall(r"^  ([\w.]+=[^\s]+)", text, re.MULTILINE)
    of_a_file = [key for key in keys if key.startswith(("data.path", "data.image_folder"))]
    for words in ([key for key in keys if key not in of_a_file], of_a_file and ["data=llava_json", *of_a_file]):
        if words:
            cal(command, "--cfg", "job", *words, folder=tmp_path)


def test_every_word_reaches_hydra(tmp_path):
    mine = tmp_path / "mine" / "objective"
    mine.mkdir(parents=True)
    (mine / "steep.yaml").write_text("_target_: cal_cli.objective.ContrastiveAlignmentLoss\nbeta: 9.0\n")
    words = ("--config-dir", str(tmp_path / "mine"), "objective=steep", "noise.ratio=0.3", "+extra.key='a b'")
    config = yaml.safe_load(cal("train", *words, "--cfg", "job", folder=tmp_path).stdout)
    assert config["objective"]["beta"] == 9.0
    assert config["noise"]["ratio"] == 0.3
    assert config["extra"]["key"] == "a b"
    assert "hydra:" in cal("train", "--cfg", "hydra", folder=tmp_path).stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train sed=1", "sed: there is no such key; did you mean seed?"),
        ("train noise.ration=1", "did you mean noise.ratio?"),
        ("train ratio=0.3", "did you mean noise.ratio?"),
        ("train data=llava_json data.pth=x", "did you mean data.path?"),
        ("train objective=calm", "objective=calm: there is no such choice; did you mean cal?"),
        ("train objective=ce,cal", "several values; cal train -m runs each of them, objective=[ce,cal] is one list"),
        ("train objctive=cal", "did you mean objective?"),
        ("train seed=abc", "seed has the wrong type: Value 'abc' of type 'str' could not be converted to Integer"),
        ("train data.n=abc", "data.n has the wrong type"),
        ("train noise.ratio=abc", "noise.ratio has the wrong type"),
        ("train noise.ratio=1.5", "1.5: allowed is a number from 0 to 1"),
        ("train objective.score=prob", "allowed are logit and logprob"),
        ("train objective.window=4", "positive odd number"),
        ("train report_to=excel", "report_to=excel"),
        ("train batch_size=0", "must be at least 1"),
        ("train learning_rate=-1", "must be at least 0"),
        ("train warmup_ratio=3", "from 0 to below 1"),
        ("train model.path=nowhere", "no config.json there"),
        ("train data=llava_json", "data.path has no value"),
        ("train data=llava_json data.path=nowhere.json", "there is no such file"),
        ("train seed=[1", """cannot be read as key=value; type 'seed="[1"' if its value is a text"""),
        ("noise-inject data.n=8 ratio=0 output=/proc/none", "/proc/none: No such file or directory; check the path"),
        ("train data.n=8 hydra.run.dir=/proc/none/run", "/proc/none: No such file or directory; check the path"),
        ("token-weight-dump checkpoint=tiny data.n=6 data.text_only_share=1", "none of the first 6 samples shows an"),
        ("train --config-dir nowhere", "nowhere' not found"),
        ("train --bogus", "unrecognized arguments: --bogus"),
        ("train -m seed=a,b", "seed has the wrong type"),
        ("trian", "No such command 'trian'"),
        ("eval checkpoint=nowhere", "there is no such folder"),
        ("eval", "no completed run"),
        ("eval benchmark=scene", "did you mean scenes?"),
        ("eval checkpoint=tiny benchmark.n=0", "must be at least 1"),
        ("noise-inject ratio=-0.1", "noise ratio -0.1: allowed is a number from 0 to 1"),
        ("noise-inject ratio=2 output=x", "allowed is a number from 0 to 1"),
        ("noise-inject data.n=1 data.text_only_share=0 ratio=1 output=x", "at least 2"),
        ("convert checkpoint=nowhere output=x", "there is no such folder; download the published checkpoint"),
        ("convert checkpoint=. output=.", "exists already; give another folder"),
        ("convert model=tiny checkpoint=. output=x", "cal convert reads published MGM checkpoints"),
        ("inspect view=x", "view=x: allowed are attention, patches, objects"),
        ("inspect sinks=x", "sinks=x: allowed are keep and remove"),
        ("inspect samples=0", "samples=0: must be at least 1"),
        ("inspect checkpoint=[tiny,tiny,tiny]", "a page shows one, or two as checkpoint=[a,b]"),
        ("inspect data.n=6 data.text_only_share=1", "none of the 6 samples shows an image"),
        ("inspect view=objects data.families=[charts] data.n=6", "none of the 6 samples has one image and regions"),
        ("data-audit rank=x", "rank=x: allowed are contradiction, evidence, loss"),
        ("data-audit clean=x", "clean=x: allowed are drop and weigh"),
        ("data-audit drop=1", "drop=1.0: allowed is a share from 0 to below 1"),
        ("data-audit clean=weigh drop=0.1", "leave drop, max_length and precision out"),
        ("data-audit batch_size=0", "batch_size=0: must be at least 1"),
        ("data-audit launch=fsdp launch.processes=2", "give single or ddp"),
        ("data-audit data.n=6 data.text_only_share=1", "no sample shows an image"),
        ("token-weight-dump manifest=nowhere", "there is no such file"),
        ("token-weight-dump objective=vig", "needs neither another model nor scores from before training"),
        ("inspect format=gif", "format=gif: allowed are null, pdf, png and svg"),
        ("train seed=-1", "seed=-1: allowed is a number from 0 to below 4294967296"),
        ("train epochs=inf", "epochs=inf: must be a finite number"),
        ("train learning_rate=nan", "learning_rate=nan: must be a finite number"),
        ("train max_steps=0", "max_steps=0: must be at least 1, or -1"),
        ("train max_steps=-5", "max_steps=-5: must be at least 1, or -1"),
        ("train max_length=-5", "max_length=-5: must be at least 1"),
        ("token-weight-dump heatmap_samples=-1", "heatmap_samples=-1: must be at least 0"),
        ("report runs=nowhere", "there is no such folder"),
        ("report runs=.", "no completed run"),
    ],
)
def test_anything_wrong_is_one_sentence_and_exit_code_2(words, said, tmp_path):
    result = cal(*words.split(), folder=tmp_path, check=False)
    assert result.returncode == 2
    assert said in re.sub(r"\s+", " ", result.stderr)
    assert "Traceback" not in result.stderr
    if result.stderr.startswith("cal: "):
        assert result.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_whole_traceback_comes_on_demand(tmp_path):
    result = cal(
        "train", "seed=abc", folder=tmp_path, check=False, before="import os; os.environ['HYDRA_FULL_ERROR'] = '1'"
    )
    assert result.returncode != 0
    assert "Traceback" in result.stderr


def test_help_and_version(tmp_path):
    text = cal("--help", folder=tmp_path).stdout
    assert all(command in text for command in COMMANDS)
    assert re.fullmatch(r"cal_cli \d+\.\d+\.\d+\n", cal("--version", folder=tmp_path).stdout)


GROUPS = {
    "train": {"benchmark", "data", "experiment", "launch", "model", "objective", "peft", "stage"},
    "eval": {"benchmark", "launch"},
    "noise-inject": {"data"},
    "token-weight-dump": {"data", "objective"},
    "report": set(),
    "bench": {"shape"},
    "data-check": {"data", "model", "stage"},
    "data-audit": {"data", "launch"},
    "inspect": {"data"},
    "convert": {"data", "model", "stage"},
    "study": {"experiment"},
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_the_groups_of_the_command_alone(command, tmp_path):
    text = cal(command, "--help", folder=tmp_path).stdout
    choices = text.partition("Choices (group=choice):\n")[2].partition("\n\n")[0]
    assert set(re.findall(r"^  ([\w/]+): ", choices, re.MULTILINE)) == GROUPS[command]


def test_help_lists_the_choices_of_a_config_dir(tmp_path):
    (tmp_path / "mine/objective").mkdir(parents=True)
    (tmp_path / "mine/objective/steep.yaml").write_text("_target_: cal_cli.objective.CrossEntropyLoss\n")
    assert (
        "ratio, shuffled, steep, truncate, vig"
        in cal("train", "--config-dir", "mine", "--help", folder=tmp_path).stdout
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("train benchmark=textvqa", "benchmark=textvqa: cal train evaluates only with evaluate_every=100"),
        ("train whatever=1", "whatever: there is no such key; cal train --help lists the keys"),
        ("train learning_rat=1", "did you mean learning_rate?"),
        ("train vision_tower_rate=0.1", "did you mean parts.vision_tower"),
        ("train objective=ce objective.contrast=cached", "objective.contrast: there is no such key"),
        ("train objective=ce objective.alpha=1", "objective.alpha: there is no such key"),
        ("train objective.ratio=0.5", "ratio=0.5 has no effect with contrast=no_image"),
        ("train objective._target_=none.Loss", "cannot be imported"),
    ],
)
def test_a_wrong_key_names_the_closest_few(words, said, tmp_path):
    result = cal(*words.split(), folder=tmp_path, check=False)
    assert result.returncode == 2 and said in result.stderr, result.stderr
    assert len(result.stderr) < 250


@pytest.mark.slow
def test_a_command_prints_nothing_that_is_not_ours(tmp_path):
    """In a process of its own, where libraries are imported anew."""
    words = ("data.n=16", "batch_size=4", "name=quiet", "logging_steps=2", "model.from_scratch=true")
    result = cal("train", "-m", *words, "seed=0,1", folder=tmp_path, HF_HUB_OFFLINE="1")
    assert result.stderr == ""
    lines = result.stdout.splitlines()
    assert len(lines) == 6
    for parts, step, last in (lines[:3], lines[3:]):
        assert re.match(
            r"trained parameters: language model [\d,]+, projector [\d,]+, image newline 0, vision tower ", parts
        )
        assert re.match(r"quiet/\S+  step \d/4  loss ", step)
        assert re.match(r"runs/train/quiet/\S+: completed, 4 steps, loss ", last)


def test_noise_inject_writes_to_a_folder_of_its_own_and_says_how_to_train_on_it(tmp_path):
    told = cal("noise-inject", "ratio=0.3", "data.n=20", folder=tmp_path).stdout
    assert (tmp_path / "runs/noise-inject/data.n-20__ratio-0.3/noise_manifest.json").is_file()
    (command,) = re.findall(r"train on it: cal (.*)", told)
    assert ": completed" in cal(*command.split(), "batch_size=4", "max_steps=1", folder=tmp_path).stdout


def test_what_a_job_of_a_sweep_leaves_behind_is_freed(monkeypatch):
    left = []

    def job(config):
        model = UserDict()
        model["itself"] = model  # a cycle, as of a model and its hooks
        left.append(weakref.ref(model))

    monkeypatch.setattr("cal_cli.commands.convert.convert", job)
    gc.unfreeze()
    for _ in range(2):
        carry_out("convert", OmegaConf.create())
    gc.collect()
    assert gc.isenabled() and gc.get_freeze_count()
    assert [reference() for reference in left] == [None, None]
