"""The examples in docstrings are true."""

import doctest
import importlib.util
import pkgutil

import pytest

import cal_cli

MODULES = [one.name for one in pkgutil.walk_packages(cal_cli.__path__, "cal_cli.") if not one.name.endswith("__main__")]


def has_examples(name):
    found = importlib.util.find_spec(name)
    with open(found.origin) as file:
        return ">>> " in file.read()


@pytest.mark.parametrize("name", [name for name in MODULES if has_examples(name)])
def test_examples_are_true(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed
