"""A wheel holds all that `cal` needs, away from the checkout."""

import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_a_wheel_works_in_a_new_environment_from_any_folder(tmp_path):
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"cal_cli/conf/train.yaml", "cal_cli/toy/tiny/model.safetensors", "cal_cli/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests/", "runs/", "conf/"))]
    # the wheel alone, without the checkout: its dependencies come from this environment
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    dependencies = Path(pytest.__file__).parent.parent
    found = f"import sys; sys.path.append({str(dependencies)!r})"
    code = f"{found}; from cal_cli.cli import main; main()"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    for words in (["train", "data.n=8", "batch_size=4"], ["eval", "benchmark.n=2"], ["token-weight-dump", "samples=4"]):
        result = subprocess.run(
            [python, "-c", code, *words], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
    where = subprocess.run(
        [python, "-c", f"{found}; import cal_cli; print(cal_cli.__file__)"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert where.stdout.startswith(str(packages))
