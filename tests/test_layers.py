"""The arrows of docs/design.md: imports go down only, without a circle; functions that fit on a screen."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "cal_cli"
LAYERS = [
    {"cli"},
    {"commands"},
    {"bench"},
    {"reporting", "toy"},
    {"training", "inspection", "evaluation"},
    {"models", "data"},
    {"objective", "runtime", "statistics"},
]
LEVEL = {name: number for number, layer in enumerate(LAYERS) for name in sorted(layer)}


def imports_of(path):
    """The folders of the package that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for module in modules:
            if module.startswith("cal_cli."):
                yield module.split(".")[1]


@pytest.mark.parametrize("layer", LEVEL)
def test_imports_go_down_only(layer):
    files = [PACKAGE / "cli.py"] if layer == "cli" else sorted((PACKAGE / layer).rglob("*.py"))
    assert files
    for path in files:
        for other in imports_of(path):
            assert other == layer or LEVEL[other] > LEVEL[layer], f"{path.name} imports {other}"


def test_every_folder_has_its_layer():
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {"cli"} == set(LEVEL)


def test_hydra_s_runtime_is_known_to_commands_alone():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "commands":
            assert "hydra.core" not in path.read_text() and "hydra.main" not in path.read_text(), path


def test_the_objective_and_the_statistics_import_nothing_else_of_the_package():
    for layer in ("objective", "statistics"):
        for path in (PACKAGE / layer).rglob("*.py"):
            assert set(imports_of(path)) <= {layer}, path


def test_no_function_is_longer_than_sixty_lines():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path.name}: {node.name}"


@pytest.mark.parametrize("words", [["report", "runs=none"], ["study", "experiment=figure3", "plan=true"]])
def test_commands_that_run_no_model_import_none(words, tmp_path):
    code = (
        "import sys; from cal_cli.cli import main; sys.argv[0] = 'cal'\n"
        "try: main()\n"
        "finally: print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
