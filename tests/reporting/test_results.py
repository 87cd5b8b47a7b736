"""Two results on the same questions, through the files and the command that users have."""

import json

import pytest

from cal_cli.reporting.results import compare
from cal_cli.runtime.errors import InputError
from tests.cal import cal

NODE = {"_target_": "cal_cli.evaluation.metrics.Mean", "rule": "exact_match", "name": "right"}


def write(folder, scores, **changed):
    """What `cal eval` writes, of one question a picture."""
    folder.mkdir(parents=True)
    told = {"benchmark": "b", "metrics": {"right": {"value": 0}}, "metric": NODE}
    (folder / "results.json").write_text(json.dumps(told | changed))
    lines = [{"id": str(n), "question": "?", "answers": ["x"], "score": score} for n, score in enumerate(scores)]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [{"id": str(n), "picture": f"p{n}", "parts": {"score": s, "n": 1.0}} for n, s in enumerate(scores)]
    (folder / "parts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_the_second_s_answers_are_held_against_the_first_s(tmp_path):
    first = write(tmp_path / "a", [1.0] * 10 + [0.0] * 10)
    second = write(tmp_path / "b", [1.0] * 9 + [0.0] * 5 + [1.0] * 6)
    found = compare(first, second)
    assert found["n"] == 20
    assert found["test"]["only_first"] == 1 and found["test"]["only_second"] == 6
    assert found["test"]["p"] == pytest.approx(2 * (1 + 7) / 2**7)
    low, high = found["differences"]["right"]["ci95"]
    assert found["differences"]["right"]["value"] == pytest.approx(0.25) and low <= 0.05 < 0.4 < high


def test_what_is_not_the_same_questions_is_refused(tmp_path):
    first, shorter = write(tmp_path / "a", [1.0, 0.0]), write(tmp_path / "b", [1.0])
    other = write(tmp_path / "c", [1.0, 0.0], benchmark="other")
    for second in (shorter, other):
        with pytest.raises(InputError, match="do not answer the same questions"):
            compare(first, second)
    (shorter / "parts.jsonl").unlink()  # as of another engine
    assert compare(first, shorter) is None


def test_results_of_another_version_are_refused(tmp_path):
    first, second = write(tmp_path / "a", [1.0, 0.0]), write(tmp_path / "b", [1.0, 0.0])
    for folder in (first, second):
        (folder / "parts.jsonl").write_text((folder / "parts.jsonl").read_text().replace('"score"', '"points"'))
    with pytest.raises(InputError, match="scored by another version"):
        compare(first, second)


def test_the_command_compares_two_folders(tmp_path):
    write(tmp_path / "a", [1.0] * 10 + [0.0] * 10)
    write(tmp_path / "b", [1.0] * 9 + [0.0] * 5 + [1.0] * 6)
    told = cal("report", "compare=[a,b]", folder=tmp_path).stdout
    assert "+0.250" in told and "in the first only 1, in the second only 6" in told and "p = 0.125" in told
    assert json.loads((tmp_path / "runs/report/compare/compare.json").read_text())["n"] == 20
    for words, said in ((["compare=[a]"], "give two folders"), (["compare=[a,c]"], "no results.json in c")):
        result = cal("report", *words, folder=tmp_path, check=False)
        assert result.returncode == 2 and said in result.stderr
