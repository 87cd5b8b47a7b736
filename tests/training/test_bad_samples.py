"""Bad samples are named once, in all processes and after a resumption too, and one too many ends the run."""

import json

import pytest

from cal_cli.data.sample import Bad
from cal_cli.training.bad_samples import BadSamples, TooManyBadSamples

ONE, TWO, THREE = (Bad(str(number), "cannot be read") for number in (1, 2, 3))


def test_each_is_named_once_and_one_too_many_is_named_and_raised(tmp_path):
    messages, path = [], tmp_path / "bad.jsonl"
    found = BadSamples(path, 2, messages.append)
    assert found.count() == 0
    found.add([ONE, TWO])
    found.add([TWO, ONE])  # the next epoch
    again = BadSamples(path, 2, messages.append)  # the run goes on
    again.add([TWO])
    assert found.count() == again.count() == 2
    assert messages == [f"left out: sample {number}: cannot be read" for number in (1, 2)]
    with pytest.raises(TooManyBadSamples, match=r"3 samples are bad, more than .* allows \(2\)"):
        again.add([THREE])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["1", "2", "3"]


def test_none_may_be_bad(tmp_path):
    with pytest.raises(TooManyBadSamples):
        BadSamples(tmp_path / "bad.jsonl", 0, print).add([ONE])
