"""What `cal data-audit` ranks by and exports as typed, and wrong inputs, each refused before any work."""

import json

import pandas as pd
import pytest

from cal_cli.inspection.review import Design
from tests.cal import cal

SMALL = ["data-audit", "data.n=24", "page_samples=5", "max_length=null"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rank=clip"], "rank=clip: give clip= too"),
        (["rank=score"], "rank=score: give score_column= too"),
        (["rank=beauty"], "contradiction"),
        (["score_column=rating"], "score_column=rating: no sample has it"),
        (["verdicts=none.json"], "verdicts=none.json: there is no such file; the page audit.html saves it"),
        (["precision=0.9"], "precision: the cut for it follows from verdicts=verdicts.json"),
        (["precision=1.5"], "precision=1.5: allowed is a share from 0 to 1"),
        (["clean=weigh", "drop=0.1"], "clean=weigh weighs all tokens of all samples"),
        (["export=yolo"], "export=yolo: allowed are llava, swift"),
        (["export=llama_factory", "clean=weigh"], "export=llama_factory has no place for weights: give llava"),
        (["clip=no/such/folder"], "clip=no/such/folder"),
    ],
)
def test_wrong_inputs_are_refused(words, message, tmp_path):
    refused = cal(*SMALL, *words, folder=tmp_path, check=False)
    assert refused.returncode == 2 and message in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_judge_s_ratings_rank_and_a_repeated_caption_is_found(tmp_path):
    cal(
        "noise-inject",
        "ratio=0",
        "output=d",
        "data.n=40",
        "data.text_only_share=0",
        "data.families=[captions]",
        folder=tmp_path,
    )
    entries = json.loads((tmp_path / "d/data.json").read_text())
    for number, entry in enumerate(entries):
        entry["rating"] = 5 - number / 10
        entry.pop("correlated", None), entry.pop("regions", None)
        if number % 4 == 0:
            entry["conversations"][1]["value"] = "A stock photo, free to download."
    (tmp_path / "d/data.json").write_text(json.dumps(entries))
    words = [
        "data=llava_json",
        "data.path=d/data.json",
        "data.image_folder=d/images",
        "score_column=rating",
        "rank=score",
    ]
    told = cal("data-audit", *words, "drop=0.25", "export=swift", folder=tmp_path).stdout
    (output,) = tmp_path.glob("runs/data-audit/*")
    table = pd.read_parquet(output / "audit.parquet")
    assert table["score"].tolist() == pytest.approx([entry["rating"] for entry in entries])
    assert set(table["index"][table["dropped"]]) == set(range(30, 40))
    assert table["text_repeats"].tolist() == [10 if number % 4 == 0 else 1 for number in range(40)]
    assert "10 samples share their text with others, the most frequent 10 times" in told
    report = json.loads((output / "audit.json").read_text())
    assert report["repeats"]["texts"]["most"][0]["samples"] == 10 and report["samples_per_second"] > 0
    assert "10 samples have this text" in (output / "audit.html").read_text()
    exported = [json.loads(line) for line in (output / "export/data.jsonl").read_text().splitlines()]
    assert [one["id"] for one in exported] == [entry["id"] for entry in entries[:30]]
    changes = [json.loads(line) for line in (output / "export/changes.jsonl").read_text().splitlines()]
    assert changes[-1] == {"index": 39, "id": entries[39]["id"], "left_out": "rank 1 by score of the data"}


@pytest.mark.slow
def test_verdicts_give_a_cut_of_a_wanted_precision_and_calibrated_weights(tmp_path):
    audit = ["data-audit", "data.n=120", "data.text_only_share=0", "noise.ratio=0.3", "review=60"]
    cal(*audit, "page_samples=60", folder=tmp_path)
    (output,) = tmp_path.glob("runs/data-audit/*")
    table = pd.read_parquet(output / "audit.parquet")
    chosen = table[table["turn"] >= 0].sort_values("turn")
    verdicts = [
        {"index": int(row.place), "id": row.sample_id, "verdict": "wrong" if row.is_noise else "right"}
        for row in chosen.rename(columns={"index": "place"}).itertuples()
    ]
    assert len(verdicts) == 60
    design = vars(Design("contradiction", 120, 60, 0))
    (tmp_path / "verdicts.json").write_text(json.dumps({**design, "verdicts": verdicts}))
    told = cal(*audit, "verdicts=verdicts.json", "precision=0.8", "export=llava", folder=tmp_path).stdout
    again = pd.read_parquet(output / "audit.parquet")
    assert again[["stratum", "probability", "turn"]].equals(table[["stratum", "probability", "turn"]])
    review = json.loads((output / "audit.json").read_text())["review"]
    assert review["total"]["ci95"][0] <= 36 <= review["total"]["ci95"][1] and "Estimated number of wrong texts" in told
    assert again["is_noise"][again["dropped"]].mean() > 0.7 and again["dropped"].sum() > 20
    cal(*audit, "verdicts=verdicts.json", "clean=weigh", "level=message", "export=llava", folder=tmp_path)
    weighed = {
        entry["id"]: entry.get("loss_weights") for entry in json.loads((output / "export/data.json").read_text())
    }
    again = pd.read_parquet(output / "audit.parquet")
    for row in again[again["verdict"].notna()].itertuples():
        assert max(weighed[row.sample_id]) == 0 if row.verdict == "wrong" else max(weighed[row.sample_id]) > 0
    assert (again["p_mismatch"][again["verdict"] == "wrong"] == 1).all()
