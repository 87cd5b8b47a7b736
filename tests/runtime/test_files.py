"""Files that are written whole."""

import json
import math

from cal_cli.runtime.files import write_json


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path):
    write_json(tmp_path / "a/x.json", {"a": math.nan, "b": [1.5, -math.inf, {"c": (2, "d")}]})

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "a/x.json").read_text()
    assert json.loads(text, parse_constant=refuse) == {"a": None, "b": [1.5, None, {"c": [2, "d"]}]}
