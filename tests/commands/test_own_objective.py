"""The ten lines of docs/objectives.md: an objective in a user's own module trains through the command."""

import json
import re
from pathlib import Path

from tests.cal import cal

PAGE = (Path(__file__).parents[2] / "docs" / "objectives.md").read_text()


def test_the_objective_of_the_docs_trains(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    (config,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    (tmp_path / "shift.py").write_text(code)
    (tmp_path / "mine/objective").mkdir(parents=True)
    (tmp_path / "mine/objective/shift.yaml").write_text(config)
    words = ("train", "--config-dir", "mine", "objective=shift", "data.n=16", "batch_size=4", "logging_steps=1")
    importable = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    cal(*words, folder=tmp_path, before=importable)
    (metrics,) = tmp_path.glob("runs/train/scenes/*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert len(lines) == 4 and all(line["weight_mean"] > line["delta_mean"] for line in lines)
    wrong = cal(*words, "objective.rule.shift=far", folder=tmp_path, check=False, before=importable)
    assert wrong.returncode == 2 and "objective.rule.shift has the wrong type" in wrong.stderr
