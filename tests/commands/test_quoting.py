"""Paths with any signs: those that exist are read as they are; for others the message says what to type in bash."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cal_cli.commands.hydra_app import quote_path
from tests.cal import ENVIRONMENT, cal

TURNS = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "a disc"}]
NAMES = ["my file (1).json", "a=b [x] äöü.json", "it's {1}, 2.json", 'q"x.json', "back\\", "~x.json", "a,b"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_any_name_is_read(name, tmp_path):
    (tmp_path / name).write_text(json.dumps([{"id": "a", "conversations": TURNS}]))
    cal("noise-inject", "data=llava_json", f"data.path={name}", "ratio=0", "output=out", folder=tmp_path)
    assert json.loads((tmp_path / "out/data.json").read_text())[0]["id"] == "a"
    assert json.loads((tmp_path / "out/noise_manifest.json").read_text())["source"] == name


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.text(st.sampled_from("ab1 \\'\"=,[]{}()$:~#%&*?!|<>@;^`äé-_.+"), min_size=1, max_size=12))
def test_a_quoted_name_is_the_name_for_hydra(name, tmp_path, monkeypatch):
    assume(name not in (".", "..") and "${" not in name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).touch()
    override = OverridesParser.create().parse_override(quote_path(f"data.path={name}"))
    assert not override.is_sweep_override()
    read = OmegaConf.to_container(OmegaConf.create({"path": override.value()}), resolve=True)["path"]
    assert str(read) == name.strip() or read == name
    (tmp_path / name).unlink()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("my out (1)", marks=pytest.mark.slow),
        "it's 'out' = 1",
        pytest.param('a "b" [c', marks=pytest.mark.slow),
    ],
)
def test_what_to_type_for_a_folder_that_does_not_exist_works_in_bash(name, tmp_path):
    words = ["noise-inject", "data.n=8", "ratio=0"]
    told = " ".join(cal(*words, f"output={name}", folder=tmp_path, check=False).stderr.split())
    typed = re.search(r"type (.*) if its value is a text", told)[1]
    command = f"{shlex.quote(sys.executable)} -m cal_cli {shlex.join(words)} {typed}"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / name / "data.json").is_file()
    # the command that it prints can be typed too
    printed = re.sub(r"\s+", " ", result.stdout).partition("train on it: cal ")[2]
    command = f"{shlex.quote(sys.executable)} -m cal_cli {printed.strip()} batch_size=8 --cfg job"
    result = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, env=ENVIRONMENT)
    assert f"{name}/data.json" in result.stdout.replace('\\"', '"').replace("''", "'"), result.stderr
