"""Files that are written whole."""

import json
import math
import os

from cal_cli.runtime.files import fingerprint, fingerprint_states, write_json


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    write_json(tmp_path / "a/x.json", {"a": math.nan, "b": [1.5, -math.inf, {"c": (2, "d")}]})

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "a/x.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": None, "b": [1.5, None, {"c": [2, "d"]}]}


def test_a_fingerprint_follows_the_contents(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    for folder in ("a", "b"):
        (tmp_path / folder / "model.bin").write_text("weights")
    assert fingerprint("a") == fingerprint("b") == fingerprint(tmp_path / "a")
    before = fingerprint("a")
    (tmp_path / "a/model.bin").write_text("WEIGHTS")  # the same size
    os.utime("a/model.bin", ns=(1, 1))
    assert fingerprint("a") != before
    (tmp_path / "a/model.bin").write_text("weights")
    assert fingerprint("a") == before
    (tmp_path / "a/model.bin").rename(tmp_path / "a/other.bin")
    assert fingerprint("a") != before
    assert fingerprint("some/hub-id") != fingerprint("some/other-id")


def test_the_states_of_files_follow_their_times_and_allow_for_missing_files(tmp_path):
    files = [tmp_path / "1.png", tmp_path / "2.png"]
    files[0].write_bytes(b"1")
    before = fingerprint_states(files)
    assert fingerprint_states(files) == before
    files[1].write_bytes(b"2")
    assert fingerprint_states(files) != before
