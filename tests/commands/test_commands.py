"""The commands after training, from typed words to files: noise, evaluation, token weights, reports."""

import hashlib
import json
import re
import shutil

import pyarrow.parquet as pq
import pytest

from cal_cli.toy.model import BASE
from cal_cli.toy.world import make_scenes
from tests.cal import cal


def test_noise_inject_writes_data_and_manifest_by_contract(tmp_path):
    words = ("noise-inject", "data.n=40", "ratio=0.5", "seed=7")
    cal(*words, "output=one", folder=tmp_path)
    cal(*words, "output=two", folder=tmp_path)
    for name in ("data.json", "noise_manifest.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    data = json.loads((tmp_path / "one/data.json").read_text())
    manifest = json.loads((tmp_path / "one/noise_manifest.json").read_text())
    assert set(manifest) == {"ratio", "kind", "seed", "n", "changed", "source", "sha256"}
    assert manifest["sha256"] == hashlib.sha256((tmp_path / "one/data.json").read_bytes()).hexdigest()
    assert manifest["n"] == sum("image" in entry for entry in data)
    assert len(manifest["changed"]) == round(0.5 * manifest["n"])
    cal("noise-inject", "data.n=40", "ratio=0", "seed=7", "output=clean", folder=tmp_path)
    clean = {entry["id"]: entry["conversations"] for entry in json.loads((tmp_path / "clean/data.json").read_text())}
    donors = {change["id"]: change["donor_id"] for change in manifest["changed"]}
    for entry in data:
        assert entry["conversations"] == clean[donors.get(entry["id"], entry["id"])]
        assert "image" not in entry or (tmp_path / "one/images" / entry["image"]).is_file()


def test_noise_inject_on_a_file_never_overwrites_it(tmp_path):
    cal("noise-inject", "data.n=20", "ratio=0", "output=world", folder=tmp_path)
    before = (tmp_path / "world/data.json").read_bytes()
    words = (
        "noise-inject",
        "data=llava_json",
        "data.path=world/data.json",
        "data.image_folder=world/images",
        "ratio=0.5",
    )
    result = cal(*words, "output=world", folder=tmp_path, check=False)
    assert result.returncode == 2
    assert "is the source itself" in result.stderr
    cal(*words, "output=noisy", folder=tmp_path)
    assert (tmp_path / "world/data.json").read_bytes() == before
    assert not (tmp_path / "noisy/images").exists()
    assert json.loads((tmp_path / "noisy/noise_manifest.json").read_text())["source"] == "world/data.json"


@pytest.mark.slow
def test_token_weights_know_noise_from_a_manifest_and_from_a_ratio_alike(tmp_path):
    cal("noise-inject", "data.n=40", "ratio=0.5", "output=noisy", folder=tmp_path)
    on_disk = ("data=llava_json", "data.path=noisy/data.json", "data.image_folder=noisy/images")
    told = cal("token-weight-dump", *on_disk, "manifest=noisy/noise_manifest.json", "output=a", folder=tmp_path).stdout
    same = cal("token-weight-dump", "data.n=40", "noise.ratio=0.5", "output=b", folder=tmp_path).stdout
    assert re.search(
        r"area under the ROC curve of 0\.\d{3} \(95 % interval over samples 0\.\d{3} to [01]\.\d{3}\)", told
    )
    assert told.split("ROC")[1] == same.split("ROC")[1]
    one, other = (pq.read_table(tmp_path / folder / "tokens.parquet") for folder in "ab")
    assert one.equals(other)
    assert one.column_names == [
        "sample_id",
        "position",
        "token_id",
        "token",
        "logit_with_image",
        "logit_without_image",
        "delta",
        "weight",
        "is_noise",
        "kind",
        "logprob_with_image",
        "logprob_without_image",
    ]
    assert 0 < sum(one["is_noise"].to_pylist()) < len(one)
    assert (tmp_path / "a/delta_histogram.png").read_bytes().startswith(b"\x89PNG")
    assert "</html>" in (tmp_path / "a/heatmap.html").read_text()


def test_several_checkpoints_are_compared(tmp_path):
    shutil.copytree(BASE, tmp_path / "other")
    words = ["checkpoint=[tiny,other]", "data.n=12", "heatmap_samples=3"]
    told = cal("token-weight-dump", *words, folder=tmp_path).stdout
    folder = tmp_path / "runs/tokens/scenes"
    assert "runs/tokens/scenes/compared: heatmap.html and delta_histogram.png compare them" in told
    for name in ("tiny", "other", "compared"):
        assert (folder / name / "delta_histogram.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "compared/heatmap.html").read_text()
    assert page.count("<article>") == 3 and page.count('<div class="id">other</div>') == 3
    assert (folder / "tiny/tokens.parquet").read_bytes() == (folder / "other/tokens.parquet").read_bytes()
    refused = cal("token-weight-dump", *words, "output=a", folder=tmp_path, check=False)
    assert refused.returncode == 2 and "give one checkpoint" in refused.stderr


def test_samples_whose_marked_words_are_rendered_differently_are_counted(tmp_path):
    """A template that changes answers leaves the places of their words unknown: those samples are not in kinds.json."""
    shutil.copytree(BASE, tmp_path / "other")
    template = tmp_path / "other/chat_template.jinja"
    template.write_text(
        template.read_text().replace('" " + text + eos_token', '" " + (text | replace("a", "o")) + eos_token')
    )
    words = ["checkpoint=other", "data.n=24", "data.families=[captions]", "data.text_only_share=0", "heatmap_samples=0"]
    told = cal("token-weight-dump", *words, "output=a", folder=tmp_path).stdout
    data = make_scenes(24, families=["captions"], text_only_share=0.0)
    lost = sum("a" in turn["value"] for entry in data.entries for turn in entry["conversations"][1:])
    assert 0 < lost <= 24
    assert f"kinds.json is without {lost} samples whose marked words the chat template renders differently" in told


def test_a_manifest_of_other_data_is_refused(tmp_path):
    cal("noise-inject", "data.n=40", "ratio=0.5", "output=noisy", folder=tmp_path)
    words = ("token-weight-dump", "data.n=40", "seed=1", "manifest=noisy/noise_manifest.json")
    result = cal(*words, folder=tmp_path, check=False)
    assert result.returncode == 2
    assert "is not sample 0 of the data" in result.stderr


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two short runs of a sweep, evaluated and reported."""
    folder = tmp_path_factory.mktemp("sweep")
    words = ("train", "-m", "name=s", "data.n=48", "objective=ce,posterior", "noise.ratio=0.5", "seed=0,1")
    words += ("logging_steps=1",)
    cal(*words, folder=folder)
    cal("eval", "checkpoint=runs/train/s", "benchmark.n=16", folder=folder)
    return folder, cal("report", "runs=runs/train/s", folder=folder).stdout, words


def test_evaluation_writes_results_by_contract(sweep):
    run = next((sweep[0] / "runs/train/s").glob("*objective-ce__seed-0"))
    results = json.loads((run / "eval/scenes/results.json").read_text())
    required = {"benchmark", "split", "n", "metrics", "checkpoint", "prompt", "generation", "versions"}
    assert required <= set(results)
    assert results["pictures"] == results["n"] == 6 * 16
    assert results["prompt"] == "<s>USER: <image>\ndescribe the picture. ASSISTANT:"
    for metric in results["metrics"].values():
        assert metric["ci95"][0] <= metric["value"] <= metric["ci95"][1]
    lines = [json.loads(line) for line in (run / "eval/scenes/predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 6 * 16
    assert all(set(line) == {"id", "question", "prediction", "answers", "score"} for line in lines)
    captions = [line["score"] for line in lines if line["id"].endswith("caption")]
    assert results["metrics"]["scene_accuracy"]["value"] == sum(captions) / 16


def test_the_report_holds_every_run_with_its_command(sweep):
    folder, printed, _ = sweep
    report = json.loads((folder / "runs/report/s/report.json").read_text())
    assert len(report["commands"]) == 4
    assert report["commands"][0].startswith("cal train ")
    rows = [row for row in report["rows"] if row["metric"] == "scene_accuracy"]
    assert [(row["objective"], row["seeds"]) for row in rows] == [("ce", [0, 1]), ("posterior", [0, 1])]
    text = (folder / "runs/report/s/report.md").read_text()
    for name in re.findall(r"\]\((.*?)\)", text):
        assert (folder / "runs/report/s" / name).read_bytes().startswith(b"\x89PNG")
    assert "minus ce" in text and "paired by seed" in text
    table = [line.split()[:3] for line in printed.splitlines() if line.startswith((" - ", " 0.5 "))]
    assert table == [["-", "before", "training"], ["0.5", "ce", "2"], ["0.5", "posterior", "2"]]
    assert printed.splitlines()[-2].startswith("runs/report/s/report.md: ") and "posterior minus ce: " in printed
    start = json.loads((folder / "runs/train/s/before_training/tiny/eval/scenes/results.json").read_text())
    assert start["checkpoint"] == str(BASE) and start["n"] == 6 * 16
    metric = start["metrics"]["scene_accuracy"]
    assert report["before_training"]["scene_accuracy"] == metric and "Before training: " in text


@pytest.mark.slow
def test_a_sweep_started_again_runs_only_what_is_missing(sweep):
    folder, _, words = sweep
    printed = cal(*words[:-2], "seed=0,1,2", "logging_steps=1", folder=folder).stdout
    assert printed.count("already completed") == 4
    assert printed.count(": completed") == 2
    again = cal("eval", "checkpoint=runs/train/s", "benchmark.n=16", folder=folder).stdout
    assert again.count("already evaluated") == 5  # and the checkpoint that they started from
    assert len([line for line in again.splitlines() if "objective-" in line and "[" in line]) == 6


def test_one_seed_is_said_to_have_no_interval(sweep, tmp_path):
    run = next((sweep[0] / "runs/train/s").glob("*objective-ce__seed-0"))
    assert "over images, one seed" in cal("report", f"runs={run}", "output=out", folder=tmp_path).stdout
    assert "One seed: intervals over images alone" in (tmp_path / "out/report.md").read_text()


def test_a_run_is_evaluated_with_its_own_camera(tmp_path):
    words = ["data.n=48", "name=c", "data.camera=bgr", "benchmark.camera=bgr", "benchmark.n=2"]
    cal("train", *words, folder=tmp_path)
    path = tmp_path / "runs/train/c"
    cal("eval", "checkpoint=runs/train/c", folder=tmp_path)
    (found,) = path.glob("*/eval/scenes/results.json")
    assert json.loads(found.read_text())["settings"]["benchmark"]["camera"] == "bgr"
    cal("eval", "checkpoint=runs/train/c", "benchmark.camera=plain", folder=tmp_path)
    results = json.loads(found.read_text())
    assert results["settings"]["benchmark"]["camera"] == "plain" and results["n"] == 12
    wrong = cal("train", "data.camera=phone", folder=tmp_path, check=False)
    assert wrong.returncode == 2 and "data.camera=phone: allowed are plain, bgr, dark" in wrong.stderr


def test_the_last_completed_run_is_what_eval_takes(sweep):
    folder = sweep[0]
    newest = max((folder / "runs/train/s").glob("*/summary.json"), key=lambda path: path.stat().st_mtime).parent
    cal("eval", "benchmark.n=4", "force=true", folder=folder)
    assert json.loads((newest / "eval/scenes/results.json").read_text())["pictures"] == 6 * 4
