"""Scores while training: the headline numbers of the benchmark, without any effect on what is trained."""

import json
import os
import signal

import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_cli.evaluation.evaluator import Scorer, spread
from cal_cli.toy.world import make_benchmark
from tests.cal import Running, cal

WORDS = ["train", "name=t", "data.n=96", "batch_size=16", "logging_steps=3", "objective=posterior", "noise.ratio=0.5"]
SCORED = [*WORDS, "evaluate_every=2", "evaluate_limit=24"]
HEADLINE = ["scene_accuracy", "questions_accuracy", "reading_accuracy", "charts_accuracy", "documents_anls"]
HEADLINE += ["references_accuracy"]


def read_scores(folder):
    (path,) = folder.glob("runs/train/t/*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return path.parent, [line for line in lines if "eval_seconds" in line], [line for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored")
    cal(*SCORED, "report_to=tensorboard", folder=folder)
    return folder


def test_each_evaluation_has_a_line_with_the_headline_numbers(scored):
    _, scores, losses = read_scores(scored)
    assert [line["step"] for line in scores] == [2, 4, 6] and [line["step"] for line in losses] == [3, 6]
    for line in scores:
        assert {f"eval_{name}" for name in HEADLINE} <= set(line)
        assert all(0 <= line[f"eval_{name}"] <= 1 for name in HEADLINE)


@pytest.mark.slow
def test_the_last_scores_are_those_of_the_checkpoint_as_cal_eval_counts_them(scored):
    """`cal eval` on the same questions: 24 of 6 x 512 at equal distances, so four of each family."""
    run, scores, _ = read_scores(scored)
    cal("eval", f"checkpoint={run}", folder=scored)
    lines = [json.loads(line) for line in (run / "eval/scenes/predictions.jsonl").read_text().splitlines()]
    chosen = [lines[number * len(lines) // 24]["score"] for number in range(24)]
    for place, name in enumerate(HEADLINE):
        assert scores[-1][f"eval_{name}"] == pytest.approx(sum(chosen[4 * place : 4 * place + 4]) / 4)


def test_training_is_not_changed(scored, tmp_path):
    cal(*WORDS, folder=tmp_path)
    one, other = read_scores(scored), read_scores(tmp_path)
    assert (one[0] / "checkpoint/model.safetensors").read_bytes() == (
        other[0] / "checkpoint/model.safetensors"
    ).read_bytes()
    assert other[1] == [] and [line["loss"] for line in one[2]] == [line["loss"] for line in other[2]]
    assert one[0].name == other[0].name  # neither does the folder's name depend on it
    assert "already completed" in cal(*SCORED, folder=tmp_path).stdout


def test_the_trackers_have_the_scores(scored):
    run, _, _ = read_scores(scored)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (folder,) = {path.parent for path in run.glob("tensorboard/**/events*")}
    events = accumulator.EventAccumulator(str(folder))
    events.Reload()
    (tag,) = [tag for tag in events.Tags()["scalars"] if "scene_accuracy" in tag]
    assert [event.step for event in events.Scalars(tag)] == [2, 4, 6]


@pytest.mark.slow
def test_an_interrupted_run_has_each_evaluation_once(tmp_path):
    words = [*SCORED, "max_steps=30", "save_steps=4"]
    process = Running(*words, folder=tmp_path)
    while not list(tmp_path.glob("runs/train/t/*/checkpoints/checkpoint-8/trainer_state.json")):
        assert process.poll() is None, process.read()
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    cal(*words, folder=tmp_path)
    assert [line["step"] for line in read_scores(tmp_path)[1]] == list(range(2, 31, 2))


@pytest.mark.slow
def test_two_processes_share_the_questions(scored, tmp_path):
    cal(*SCORED, "launch=ddp", "launch.processes=2", "batch_size=8", "global_batch_size=16", folder=tmp_path)
    assert [line["step"] for line in read_scores(tmp_path)[1]] == [2, 4, 6]


def test_questions_are_spread_over_the_benchmark(scored):
    benchmark = make_benchmark(n=10)
    scorer = Scorer(benchmark, [], 12, None, 4)
    assert [question.tags["family"] for question in scorer.questions[::2]] == list(
        dict.fromkeys(question.tags["family"] for question in benchmark.questions)
    )
    assert spread(benchmark.questions, 100) == benchmark.questions
    run, _, _ = read_scores(scored)
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint")
    found = Scorer(benchmark, [], 6, AutoProcessor.from_pretrained(run / "checkpoint"), 4).score(model)
    assert list(found) == ["scene_accuracy"]  # without a headline, the first


def test_wrong_values_are_named(tmp_path):
    for words, said in (
        (["evaluate_every=0"], "evaluate_every=0: must be at least 1"),
        (["evaluate_every=2", "evaluate_limit=0"], "evaluate_limit=0: must be at least 1"),
        (["evaluate_every=2", "launch=fsdp"], "a sharded model cannot answer questions"),
        (["evaluate_every=2", "benchmark=none"], "no such choice; cal train --help lists them"),
        (["evaluate_every=2", "benchmark=paper"], "benchmark=paper is several: give one of them"),
    ):
        result = cal("train", "data.n=16", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and said in result.stderr, result.stderr
