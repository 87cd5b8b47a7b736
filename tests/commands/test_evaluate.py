"""`cal eval` as it is typed: a model that knows all, one that says nothing, cut short, by two, and wrong words."""

import json
import os
import shutil
import signal
import time

import datasets
import pytest
import torch
from hydra import compose, initialize_config_dir

from cal_cli.data.collator import Collator
from cal_cli.objective import ContrastiveAlignmentLoss
from cal_cli.toy.model import load_tiny
from tests.cal import Running, cal
from tests.evaluation.fixtures import COMMIT, NAMES, cache, write
from tests.evaluation.test_benchmark import CONF, benchmark

TOP = {"ocrbench": 0.003, "mmt": 100, "mme": 400}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return {name: write(name, folder / name) for name in NAMES}


def best_answer(name, question):
    if name.startswith("refcocog") and "caption" not in name:
        return f"[{', '.join(question.answers)}]"
    return question.answers[0]


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    """A model whose first token is its last."""
    model, processor = load_tiny()
    torch.nn.init.zeros_(model.lm_head.weight)  # all logits are alike, and the first token wins
    model.generation_config.eos_token_id = 0
    folder = tmp_path_factory.mktemp("silent")
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def knowing(data, tmp_path_factory):
    """The shipped base, taught every answer of every fixture by heart."""
    model, processor = load_tiny()
    samples = []
    for name in NAMES:
        for question in benchmark(name, data[name]).questions:
            turns = [
                {"from": "human", "value": question.question},
                {"from": "gpt", "value": best_answer(name, question)},
            ]
            samples.append({"id": question.id, "image": question.images()[0], "conversations": turns})
    collate, loss = Collator(processor), ContrastiveAlignmentLoss(alpha=1, beta=1)
    samples.sort(key=lambda sample: len(sample["conversations"][0]["value"]))
    batches = [collate(samples[start : start + 12]) for start in range(0, len(samples), 12)]
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(200):
        worst = 0.0
        for batch in batches:
            out = loss(model, batch)
            out.loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            worst = max(worst, float(out.cross_entropy.max()))
        if worst < 0.2:  # each right token has four fifths of the probability
            break
    folder = tmp_path_factory.mktemp("knowing")
    model.save_pretrained(folder), processor.save_pretrained(folder)
    return folder


def results(folder, name, checkpoint):
    return json.loads((folder / f"runs/eval/{name}/{checkpoint.name}/results.json").read_text())


def paths(data, name):
    return f"benchmark.path={data[name]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_knowing_all_has_the_top_score_and_silence_the_bottom(name, knowing, silent, data, tmp_path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        headline = compose("eval", overrides=[f"benchmark={name}"]).benchmark.headline[0]
    for checkpoint in (knowing, silent):
        cal("eval", f"benchmark={name}", paths(data, name), f"checkpoint={checkpoint}", folder=tmp_path)
    best, none = (results(tmp_path, name, checkpoint)["metrics"][headline] for checkpoint in (knowing, silent))
    asked = benchmark(name, data[name])
    if headline.endswith("CIDEr"):  # of one of several people's captions it depends on the others
        parts = asked.metric.score(asked.questions, [best_answer(name, question) for question in asked.questions])
        assert best["value"] == pytest.approx(sum(part["score"] for part in parts) / len(parts))
    else:
        assert best["value"] == pytest.approx(TOP.get(name, 1.0))
    assert none["value"] == 0


@pytest.mark.slow
def test_two_processes_agree_with_one_to_the_last_digit(data, tmp_path):
    found = []
    for words in (["launch.processes=1"], ["launch=ddp", "launch.processes=2"]):
        words += ["benchmark=mme", paths(data, "mme"), "benchmark.max_new_tokens=4", "batch_size=2"]
        cal("eval", "checkpoint=tiny", "force=true", *words, folder=tmp_path)
        folder = tmp_path / "runs/eval/mme/tiny"
        told = json.loads((folder / "results.json").read_text())
        found.append((told["metrics"], (folder / "predictions.jsonl").read_text()))
        assert told["processes"] == len(found)
        assert not (folder / "answers").exists()
    assert found[0] == found[1]


@pytest.mark.slow
def test_an_evaluation_that_was_killed_goes_on_where_it_was(tmp_path):
    words = ["eval", "checkpoint=tiny", "benchmark.n=16", "batch_size=5"]
    whole = tmp_path / "whole"
    whole.mkdir()
    cal(*words, folder=whole)
    process = Running(*words, folder=tmp_path)
    answers = tmp_path / "runs/eval/scenes/tiny/answers/0.jsonl"
    while not answers.is_file() or answers.read_bytes().count(b"\n") < 20:
        assert process.poll() is None, process.read()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    text = answers.read_bytes()
    answers.write_bytes(text[: text.rstrip(b"\n").rfind(b"\n") + 9])  # as if it had been cut within a line
    before = answers.read_bytes().count(b"\n")
    again = cal(*words, folder=tmp_path).stdout
    assert f"continuing after {before} of 96 questions" in again, again
    one, two = (folder / "runs/eval/scenes/tiny/predictions.jsonl" for folder in (whole, tmp_path))
    assert one.read_text() == two.read_text()
    assert not answers.parent.exists()


def test_answers_of_another_evaluation_are_not_taken(tmp_path):
    folder = tmp_path / "runs/eval/scenes/tiny/answers"
    folder.mkdir(parents=True)
    (folder / "_of.json").write_text('{"prompts": "others"}')
    (folder / "0.jsonl").write_text('["test-0-000000-caption", "another\'s"]\n')
    told = cal("eval", "checkpoint=tiny", "benchmark.n=2", folder=tmp_path).stdout
    assert "continuing" not in told and "starting again; the earlier answers differ in" in told
    assert "another's" not in (tmp_path / "runs/eval/scenes/tiny/predictions.jsonl").read_text()


def test_results_follow_the_checkpoint_its_dtype_and_the_data(tmp_path):
    """A checkpoint of the same name, another dtype and a corrected file never take the results of an earlier call."""
    model, processor = load_tiny()
    for name in ("one/model", "other/model"):
        model.save_pretrained(tmp_path / name), processor.save_pretrained(tmp_path / name)
    write("mme", tmp_path / "mme")
    words = ["eval", "benchmark=mme", "benchmark.path=mme", "benchmark.max_new_tokens=1"]
    cal(*words, "checkpoint=one/model", folder=tmp_path)
    assert "already evaluated" in cal(*words, "checkpoint=one/model", folder=tmp_path).stdout
    assert "already evaluated" not in cal(*words, "checkpoint=other/model", folder=tmp_path).stdout
    files = sorted((tmp_path / "runs/eval/mme").glob("*/results.json"))
    assert sorted(json.loads(file.read_text())["checkpoint"] for file in files) == ["one/model", "other/model"]

    def ask():
        return " ".join(cal(*words, "checkpoint=one/model", "dtype=bfloat16", folder=tmp_path).stdout.split())

    assert "evaluating again; the results there differ in dtype" in ask()
    (file,) = (tmp_path / "mme").rglob("test-*.parquet")
    rows = datasets.Dataset.from_parquet(str(file))
    rows.map(lambda row: {"answer": "Yes"}).to_parquet(file)
    assert "evaluating again; the results there differ in data" in ask()
    assert "already evaluated" in ask()


def test_several_benchmarks_one_after_the_other_and_what_they_tell(data, tmp_path):
    mine = tmp_path / "mine/benchmark"
    mine.mkdir(parents=True)
    for name in ("pope", "chartqa"):
        text = f"defaults: [{name}]\npath: {data[name]}\nmax_new_tokens: 3\n"
        (mine / f"my_{name}.yaml").write_text(text)
    (mine / "both.yaml").write_text("benchmarks: [my_pope, my_chartqa]\n")
    words = ["eval", "--config-dir", str(mine.parent), "checkpoint=tiny"]
    told = cal(*words, "benchmark=both", folder=tmp_path).stdout
    assert "pope f1 score" in told and "relaxed overall" in told and "4 questions of the split test" in told
    again = cal(*words, "benchmark=[my_chartqa,my_pope]", folder=tmp_path).stdout
    assert again.count("already evaluated") == 2
    result = json.loads((tmp_path / "runs/eval/my_pope/tiny/results.json").read_text())
    assert result["n"] == 4 and result["pictures"] == 2 and result["split"] == "test"
    assert result["prompt"].endswith("ASSISTANT:") and len(result["prompts_sha256"]) == 64
    assert result["data"]["sha256"] and result["versions"]["cal_cli"]
    assert result["generation"] == {"do_sample": False, "max_new_tokens": 3, "batch_size": 128, "dtype": "float32"}
    lines = [json.loads(line) for line in (tmp_path / "runs/eval/my_pope/tiny/predictions.jsonl").open()]
    assert [line["id"] for line in lines] == ["0", "1", "2", "3"]
    cal(*words, "benchmark=my_pope", "limit=2", folder=tmp_path)
    assert json.loads((tmp_path / "runs/eval/my_pope_2/tiny/results.json").read_text())["n"] == 2
    assert json.loads((tmp_path / "runs/eval/my_pope/tiny/results.json").read_text())["n"] == 4
    shutil.rmtree(tmp_path / "runs")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["batch_size=0"], "batch_size=0: must be at least 1"),
        (["limit=0"], "limit=0: must be at least 1"),
        (["launch=fsdp", "launch.processes=2"], "distributes questions and does not shard models"),
        (["dtype=int8"], "allowed are float32, bfloat16, float16"),
        (["benchmark=textvqua"], "did you mean textvqa?"),
        (["benchmark=[scenes,textvqua]"], "benchmark=textvqua: there is no such choice; did you mean textvqa?"),
        (["benchmark=[scenes,textvqa]", "benchmark.n=4"], "benchmark=textvqa: Could not override 'benchmark.n'"),
        (["benchmark=docvqa"], "hf download --repo-type dataset lmms-lab-encoder/DocVQA"),
        (["checkpoint=nobody/nothing"], "run `hf download nobody/nothing`"),
        (["checkpoint=nowhere"], "there is no such folder"),
    ],
)
def test_wrong_words_are_told(words, said, tmp_path):
    words = words if any(word.startswith("checkpoint=") for word in words) else [*words, "checkpoint=tiny"]
    result = cal("eval", *words, folder=tmp_path, check=False)
    assert result.returncode == 2 and said in result.stderr, result.stderr


@pytest.fixture(scope="module")
def fetched(tmp_path_factory):
    """POPE's rows in the cache of `datasets`, as if they had been fetched."""
    return {"HF_DATASETS_CACHE": str(cache("pope", "lmms-lab-encoder/POPE", tmp_path_factory.mktemp("fetched")))}


@pytest.mark.slow
def test_what_is_in_the_cache_needs_no_network(fetched, tmp_path):
    cal("eval", "benchmark=pope", "benchmark.max_new_tokens=2", "checkpoint=tiny", folder=tmp_path, **fetched)
    told = json.loads((tmp_path / "runs/eval/pope/tiny/results.json").read_text())
    assert told["n"] == 4 and told["data"] == {"path": "lmms-lab-encoder/POPE", "name": None, "revision": COMMIT}


def test_two_commands_that_evaluate_the_same_wait_for_each_other(tmp_path):
    words = ["eval", "checkpoint=tiny", "benchmark.n=16", "batch_size=2"]
    both = [Running(*words, folder=tmp_path) for _ in range(2)]
    told = [process.communicate()[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    assert sum("already evaluated" in text for text in told) == 1
