"""`cal train` with frozen references and cached scores, as typed."""

import json
import shutil

import pyarrow.parquet as pq
import torch
from rich.console import Console
from transformers import AutoModelForImageTextToText, AutoProcessor

from cal_cli.data.collator import Collator
from cal_cli.objective import IGNORED, RuleLoss
from cal_cli.objective.contrasts import blur
from cal_cli.objective.rules import VisualInformationGain
from cal_cli.toy.model import BASE
from cal_cli.toy.world import make_scenes
from cal_cli.training.reference import prepare_scores
from tests.cal import cal

SMALL = ["data.n=32", "batch_size=8", "logging_steps=1", "name=t"]


def losses(folder, part):
    (path,) = folder.glob(f"runs/train/t/*{part}*/metrics.jsonl")
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()]


def test_cached_scores_are_computed_once_and_are_the_reference_s(tmp_path):
    cal("train", *SMALL, "objective=prior", "seed=0", folder=tmp_path)
    first = cal("train", *SMALL, "objective=prior", "objective.contrast=cached", folder=tmp_path)
    again = cal("train", *SMALL, "objective=prior", "objective.contrast=cached", "learning_rate=0", folder=tmp_path)
    assert "computing 32 samples once" in first.stdout
    assert "read from" in again.stdout
    (path,) = tmp_path.glob("runs/scores_without_image/*.parquet")
    assert pq.read_table(path).num_rows == 32
    live, cached = (
        losses(tmp_path, "objective-prior__seed-0"),
        losses(tmp_path, "n-32__logging_steps-1__objective.contrast-cached"),
    )
    assert all(abs(one - other) < 1e-3 for one, other in zip(cached, live, strict=True))


def test_what_a_reference_must_be_is_told(tmp_path):
    other = tmp_path / "other"
    shutil.copytree(BASE, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    one, two = list(vocabulary)[-2:]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    for words, named in (
        (["objective.contrast=reference", "objective.reference=nowhere"], "no config.json there"),
        (["objective.reference=nowhere"], "it needs contrast=reference or contrast=cached"),
        (["objective=prior", f"objective.reference={other}"], "tokenizer differs"),
        (["objective.contrast=cached", "objective.pooling=flat"], "use pooling=answer"),
    ):
        result = cal("train", *SMALL, *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and named in result.stderr, result.stderr
        assert not list(tmp_path.glob("runs/train/t/*/config.yaml"))
    cal("train", *SMALL, "objective=prior", f"objective.reference={BASE}", folder=tmp_path)


def test_cached_scores_leave_bad_samples_out(tmp_path):
    cal("noise-inject", "ratio=0", "data.n=64", "data.text_only_share=0", "output=data", folder=tmp_path)
    entries = json.loads((tmp_path / "data/data.json").read_text())
    for number in (3, 8, 9, 10, 11):  # one in the midst of a batch, and all of another
        (tmp_path / "data/images" / entries[number]["image"]).write_bytes(b"no image")
    words = ["data=llava_json", "data.path=data/data.json", "data.image_folder=data/images", "batch_size=4", "name=t"]
    words += ["objective.contrast=cached", "logging_steps=1"]
    refused = cal("train", *words, folder=tmp_path, check=False)
    assert refused.returncode == 2 and "cannot be read as an image" in refused.stderr
    told = cal("train", *words, "data.max_bad_fraction=0.1", folder=tmp_path).stdout
    assert "left out: sample" in told
    (path,) = tmp_path.glob("runs/scores_without_image/*.parquet")
    scores = pq.read_table(path)["without_image"].to_pylist()
    assert [number for number, row in enumerate(scores) if not row] == [3, 8, 9, 10, 11] and len(scores) == 64
    (run,) = tmp_path.glob("runs/train/t/*/bad_samples.jsonl")
    assert len(run.read_text().splitlines()) == 5


@torch.no_grad()
def test_visual_information_gain_is_chosen_once_by_the_model_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, processor = AutoModelForImageTextToText.from_pretrained(BASE), AutoProcessor.from_pretrained(BASE)
    data, collate = make_scenes(n=20, seed=1, text_only_share=0.3), Collator(processor)
    objective = RuleLoss(VisualInformationGain(share=0.5), sigma=3.0)
    prepared = prepare_scores(objective, model, collate, data, 8, Console(quiet=True))
    gains = {}
    for number in range(20):
        batch = collate([data[number]])
        if data[number]["image"] is None:
            continue
        chosen = batch["labels"][0, 1:] != IGNORED
        logprobs = []
        for pixels in (batch["pixel_values"], blur(batch["pixel_values"], 3.0)):
            logits = model(**{**batch, "pixel_values": pixels, "labels": None}).logits[0, :-1].log_softmax(-1)
            logprobs.append(logits.gather(1, batch["input_ids"][0, 1:, None])[chosen, 0])
        gains[number] = logprobs[0] - logprobs[1]
    ranked = sorted((float(gain.mean()) for gain in gains.values()), reverse=True)
    threshold = ranked[(len(ranked) + 1) // 2 - 1]
    kept = 0
    for number in range(20):
        found = collate([prepared[number]])
        weights = found["loss_weights"][0][found["labels"][0] != IGNORED]
        if number not in gains:
            assert torch.equal(weights, torch.ones_like(weights))
            continue
        mean = float(gains[number].mean())
        expected = (gains[number] >= threshold) & (mean > threshold - 1e-6)
        clear = (gains[number] - threshold).abs() > 1e-5
        assert torch.equal(weights[clear], expected[clear].float())
        kept += bool(weights.any())
    assert kept == (len(ranked) + 1) // 2
    assert not torch.isnan(objective(model, collate([prepared[number] for number in range(20)])).loss)


def test_weights_come_with_the_data(tmp_path):
    cal("noise-inject", "ratio=0", "data.n=16", "data.text_only_share=0", "output=data", folder=tmp_path)
    path = tmp_path / "data/data.json"
    words = ["data=llava_json", "data.path=data/data.json", "data.image_folder=data/images", "batch_size=4", "name=t"]
    words += ["logging_steps=1"]
    refused = cal("train", *words, "objective=column", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "reads loss_weights, and no sample has any" in refused.stderr
    entries = json.loads(path.read_text())
    for number, entry in enumerate(entries):
        if number % 4:
            answers = sum(turn["from"] == "gpt" for turn in entry["conversations"])
            entry["loss_weights"] = [0.25] * answers
    path.write_text(json.dumps(entries))
    told = cal("train", *words, "objective=ce", "seed=1", folder=tmp_path).stdout
    assert "have loss_weights, which this objective does not read" in told
    cal("train", *words, "objective=column", "seed=2", folder=tmp_path)
    (log,) = tmp_path.glob("runs/train/t/*column*/metrics.jsonl")
    means = [json.loads(line)["weight_mean"] for line in log.read_text().splitlines()]
    assert all(0.25 <= mean <= 1 for mean in means) and 0.3 < sum(means) / len(means) < 0.6
    answers = sum(turn["from"] == "gpt" for turn in entries[0]["conversations"])
    entries[0]["loss_weights"] = [[0.5], *[1.0] * (answers - 1)]
    path.write_text(json.dumps(entries))
    wrong = cal("train", *words, "objective=column", "seed=3", folder=tmp_path, check=False)
    assert wrong.returncode == 2 and "has 1 loss_weights for an answer of" in wrong.stderr
