"""Bad samples are named once, in all processes and after a resumption too, and one too many ends the run."""

import io
import json

import pytest
from rich.console import Console

from cal_cli.data.sample import Bad
from cal_cli.training.bad_samples import BadSamples, TooManyBadSamples

ONE, TWO, THREE = (Bad(str(number), "cannot be read") for number in (1, 2, 3))


def test_each_is_named_once_and_one_too_many_is_named_and_raised(tmp_path):
    told, path = Console(file=io.StringIO()), tmp_path / "bad.jsonl"
    found = BadSamples(path, 2, told)
    assert found.count() == 0
    found.add([ONE, TWO])
    found.add([TWO, ONE])  # the next epoch
    again = BadSamples(path, 2, told)  # the run goes on
    again.add([TWO])
    assert found.count() == again.count() == 2 and told.file.getvalue().count("left out: sample") == 2
    with pytest.raises(TooManyBadSamples, match=r"3 samples are bad, more than .* allows \(2\)"):
        again.add([THREE])
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["1", "2", "3"]


def test_none_may_be_bad(tmp_path):
    with pytest.raises(TooManyBadSamples):
        BadSamples(tmp_path / "bad.jsonl", 0, Console(file=io.StringIO())).add([ONE])
