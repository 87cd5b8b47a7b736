"""Load by hub id or from a folder, and say in one sentence what to do where neither is at hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cal_cli.errors import InputError


def fetched(loader: Callable, name: str, key: str, **options: Any) -> Any:
    """Load something by hub id or from a folder.

    Raises:
        InputError: it is neither here nor to be had from the hub.
    """
    try:
        return loader(name, **options)
    except (OSError, ValueError) as error:
        if Path(name).is_dir():
            raise InputError(f"{key}={name}: the folder cannot be loaded: {str(error).splitlines()[0]}") from error
        raise InputError(
            f"{key}={name}: neither a folder here nor in the cache of the Hugging Face hub, and the hub does not give "
            f"it: run `hf download {name}` where there is a network, or give a folder with config.json, "
            "*.safetensors and the tokenizer's files"
        ) from error
