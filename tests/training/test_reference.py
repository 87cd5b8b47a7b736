"""`cal train` with frozen references and cached scores, as typed."""

import json
import shutil

import pyarrow.parquet as pq

from cal_cli.toy.model import BASE
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
    scores = pq.read_table(path)["scores"].to_pylist()
    assert [number for number, row in enumerate(scores) if not row] == [3, 8, 9, 10, 11] and len(scores) == 64
    (run,) = tmp_path.glob("runs/train/t/*/bad_samples.jsonl")
    assert len(run.read_text().splitlines()) == 5
