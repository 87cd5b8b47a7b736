"""The snippet of the README runs as it is printed there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cal import ENVIRONMENT

README = Path(__file__).parent.parent / "README.md"
SNIPPETS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(SNIPPETS)))
def test_the_snippet_runs(number, tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SNIPPETS[number]], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr


def test_a_loss_is_among_them():
    assert ".loss.backward()" in "".join(SNIPPETS)
