"""Run the command line as a user does: a process of its own, in a folder of its own."""

import os
import subprocess
import sys

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}


def cal(*words, folder, check=True, **environment):
    """Run `cal` in a folder; with `check`, fail unless it ends with 0."""
    result = subprocess.run(
        [sys.executable, "-m", "cal_cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        env={**ENVIRONMENT, **environment},
    )
    if check:
        assert result.returncode == 0, result.stderr + result.stdout
    return result
