"""`cal data-audit` as typed: on JSON and Parquet, killed and started again, in two processes, and trained on."""

import json
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from scipy import special

from tests.cal import Running, cal

AUDIT = ["data-audit", "data=llava_json", "data.path=noisy/data.json", "data.image_folder=noisy/images"]
FOLDER = "runs/data-audit/data.image_folder-noisy_images__data.path-noisy_data.json__data-llava_json"


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """A folder with data of which a quarter is exchanged, and an audit of them."""
    folder = tmp_path_factory.mktemp("noisy")
    cal("noise-inject", "ratio=0.25", "output=noisy", "data.n=320", "data.text_only_share=0.1", folder=folder)
    told = cal(*AUDIT, "manifest=noisy/noise_manifest.json", folder=folder).stdout
    return folder, told


def test_the_worst_samples_are_found_and_left_out(noisy):
    folder, told = noisy
    entries = json.loads((folder / "noisy/data.json").read_text())
    manifest = json.loads((folder / "noisy/noise_manifest.json").read_text())
    changed = {change["index"] for change in manifest["changed"]}
    table = pd.read_parquet(folder / FOLDER / "audit.parquet")
    assert table["index"].tolist() == [place for place, entry in enumerate(entries) if "image" in entry]
    assert set(table["index"][table["is_noise"]]) == changed
    assert sorted(table["rank"]) == list(range(1, len(table) + 1))
    assert table.sort_values("rank")["contradiction"].is_monotonic_decreasing
    report = json.loads((folder / FOLDER / "audit.json").read_text())
    low, high = report["mismatched"]["samples"]["ci95"]
    assert low < len(changed) / len(table) < high
    assert report["detection"]["evidence against the image"]["auc"] > 0.9
    dropped = set(table["index"][table["dropped"]])
    assert len(dropped) == report["dropped"] == round(report["mismatched"]["samples"]["value"] * len(table))
    clean = json.loads((folder / FOLDER / "clean.json").read_text())
    assert [entry["id"] for entry in clean] == [e["id"] for n, e in enumerate(entries) if n not in dropped]
    assert len(dropped & changed) > 0.8 * len(dropped)
    assert "train on the" in told and "area under the ROC curve" in told


def test_tables_of_all_levels_agree(noisy):
    folder, _ = noisy
    samples = pd.read_parquet(folder / FOLDER / "audit.parquet").set_index("index")
    sentences = pq.read_table(folder / FOLDER / "sentences.parquet").to_pandas()
    tokens = pd.read_parquet(folder / FOLDER / "tokens")  # the folder as one table
    delta = tokens["logprob_with_image"] - tokens["logprob_without_image"]
    assert np.allclose(delta.groupby(tokens["index"]).sum(), samples["evidence"], atol=1e-3)
    assert np.allclose(sentences.groupby("index")["evidence"].sum(), samples["evidence"], atol=1e-3)


def test_another_ranking_uses_the_same_pass(noisy):
    folder, _ = noisy
    before = (folder / FOLDER / "tokens/000000.parquet").stat().st_mtime_ns
    assert (folder / FOLDER / "detection.png").is_file()
    told = cal(*AUDIT, "rank=evidence", "drop=0.1", "page_samples=3", folder=folder).stdout
    assert (folder / FOLDER / "tokens/000000.parquet").stat().st_mtime_ns == before
    table = pd.read_parquet(folder / FOLDER / "audit.parquet")
    assert table.sort_values("rank")["evidence"].is_monotonic_increasing and "is_noise" not in table
    assert not (folder / FOLDER / "detection.png").exists()  # without the manifest, nothing is known to be wrong
    assert table["dropped"].sum() == round(0.1 * len(table))
    assert (folder / FOLDER / "audit.html").read_text().count("<article") == 3
    assert "starting again" not in told


def test_weights_train_with_the_column_objective(noisy, tmp_path):
    folder, _ = noisy
    told = cal(*AUDIT, "clean=weigh", folder=folder).stdout
    clean = json.loads((folder / FOLDER / "clean.json").read_text())
    weighted = [entry for entry in clean if "loss_weights" in entry]
    assert len(weighted) == sum("image" in entry for entry in clean)
    tokens, r = pd.read_parquet(folder / FOLDER / "tokens"), 0.05
    rho = json.loads((folder / FOLDER / "audit.json").read_text())["mismatched"]["samples"]["value"]
    delta = (tokens["logprob_with_image"] - tokens["logprob_without_image"]).to_numpy(np.float64)
    evidence = pd.Series(np.log((1 - r) * np.exp(delta) + r)).groupby(tokens["index"]).transform("sum")
    expected = special.expit(delta + special.logit(1 - r)) * special.expit(evidence + special.logit(1 - rho))
    written = [one for entry in weighted for answer in entry["loss_weights"] for one in answer]
    assert np.allclose(written, expected, atol=1e-3)
    command = told.strip().splitlines()[-1].partition(": ")[2].split()
    assert command[-1] == "objective=column"
    cal(*command[1:], "max_steps=1", "batch_size=8", "name=t", folder=folder)


@pytest.mark.slow
def test_two_processes_and_a_killed_audit_end_with_the_same(noisy, tmp_path):
    folder, _ = noisy
    (tmp_path / "noisy").symlink_to(folder / "noisy")
    first = Running(*AUDIT, "batch_size=4", folder=tmp_path)
    while not list((tmp_path / FOLDER).glob("tokens/*.parquet")):
        assert first.poll() is None, first.read()
        time.sleep(0.02)
    first.kill()
    first.wait()
    assert not (tmp_path / FOLDER / "audit.parquet").exists()
    told = cal(*AUDIT, "launch=ddp", "launch.processes=2", folder=tmp_path).stdout
    assert "continuing after 1 of 2 parts" in told
    again, before = (pd.read_parquet(path / FOLDER / "tokens") for path in (tmp_path, folder))
    pd.testing.assert_frame_equal(again, before, atol=1e-4)
    (tmp_path / FOLDER / "tokens/_of.json").write_text('{"versions": {}}')
    assert "starting again; the audit there differs in" in cal(*AUDIT, folder=tmp_path).stdout


def test_rows_of_a_table_are_left_out_by_number(noisy, tmp_path):
    import datasets

    folder, _ = noisy
    entries = json.loads((folder / "noisy/data.json").read_text())[:60]
    (tmp_path / "d").mkdir()
    shown = [entry for entry in entries if "image" in entry]
    images = [(folder / "noisy/images" / entry["image"]).read_bytes() for entry in shown]
    rows = [
        {"id": entry["id"], "conversations": entry["conversations"], "image": {"bytes": image, "path": None}}
        for entry, image in zip(shown, images, strict=True)
    ]
    features = datasets.Features(
        {
            "id": datasets.Value("string"),
            "image": datasets.Image(),
            "conversations": [{"from": datasets.Value("string"), "value": datasets.Value("string")}],
        }
    )
    datasets.Dataset.from_list(rows, features).to_parquet(str(tmp_path / "d/train.parquet"))
    told = cal("data-audit", "data=table", "data.path=d", "drop=0.5", folder=tmp_path).stdout
    (output,) = tmp_path.glob("runs/data-audit/*")
    table = pd.read_parquet(output / "audit.parquet")
    kept = json.loads((output / "rows.json").read_text())
    assert kept == table["index"][~table["dropped"]].tolist() and len(kept) == len(rows) - round(0.5 * len(rows))
    assert "data.rows=" in told
    told = cal("data-audit", "data=table", "data.path=d", "clean=weigh", "level=message", folder=tmp_path).stdout
    weights = pd.read_parquet(output / "weights.parquet")["loss_weights"]
    assert len(weights) == len(rows) and weights.notna().all()
    given = [word for word in told.split() if word.startswith("data.weights=")]
    train = ["train", "data=table", "data.path=d", "objective=column", "max_steps=1", "batch_size=4", "name=t"]
    cal(*train, *given, folder=tmp_path)
    datasets.Dataset.from_dict({"loss_weights": [[[1.0]]]}).to_parquet(str(tmp_path / "one.parquet"))
    refused = cal(*train, "data.weights=one.parquet", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "is it of other data?" in refused.stderr


def test_an_unreadable_image_is_left_out(noisy, tmp_path):
    folder, _ = noisy
    entries = [entry for entry in json.loads((folder / "noisy/data.json").read_text()) if "image" in entry][:30]
    (tmp_path / "images").mkdir()
    for entry in entries:
        content = (folder / "noisy/images" / entry["image"]).read_bytes()
        (tmp_path / "images" / entry["image"]).write_bytes(content[:50] if entry is entries[7] else content)
    (tmp_path / "data.json").write_text(json.dumps(entries))
    words = [
        "data=llava_json",
        "data.path=data.json",
        "data.image_folder=images",
        "data.max_bad_fraction=0.1",
        "drop=0",
    ]
    told = cal("data-audit", *words, folder=tmp_path).stdout
    (output,) = tmp_path.glob("runs/data-audit/*")
    assert "29 were audited" in told and "1 cannot be used; cal data-check says why" in told
    clean = json.loads((output / "clean.json").read_text())
    assert [one["id"] for one in clean] == [one["id"] for one in entries if one is not entries[7]]


def test_generated_images_have_no_clean_data(tmp_path):
    told = cal("data-audit", "data.n=20", "page_samples=0", folder=tmp_path).stdout
    assert "give export=llava" in told and not list(tmp_path.rglob("clean.json"))
