"""Composed Hydra configs become typed values: a wrong type ends as one sentence, before any work starts."""

import dataclasses
import hashlib
import inspect
import re
import shlex
from typing import Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cal_cli.errors import InputError

T = TypeVar("T")


def folder_name(overrides: str) -> str:
    """A run's folder from its overrides, `default` for none: characters that need no quotes, at most 120 of them."""
    name = re.sub(r"[^\w.+-]+", "_", overrides) or "default"
    return name if len(name) <= 120 else f"{name[:111]}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


OmegaConf.register_new_resolver("folder_name", folder_name, replace=True)


def command_words(subcommand: str) -> list[str]:
    """The words of the command that regenerates the running job, from Hydra's record of its overrides."""
    job = HydraConfig.get()
    words = ["cal", subcommand]
    for source in job.runtime.config_sources:
        if source.provider == "command-line":
            words += ["--config-dir", source.path]
    return [*words, *job.overrides.task]


def command_line(subcommand: str) -> str:
    """The same as one line for a shell."""
    return shlex.join(command_words(subcommand))


def typed(config: DictConfig, schema: type[T]) -> T:
    """Check a resolved config against a dataclass and return an instance of it; `Any` fields stay configs.

    Raises:
        InputError: a value is missing or has the wrong type.
    """
    return schema(**_checked(config, schema))


def build(config: DictConfig, key: str, **more: Any) -> Any:
    """Call the `_target_` of the node at `key` with the node's values, their types checked by its annotations.

    Args:
        config: the config that holds the node, such as `data`.
        key: the node's name.
        more: further arguments of the target.

    Raises:
        InputError: a value is missing or has the wrong type, or the target refuses it with a ValueError.
    """
    node = {name: config[key]._get_node(name) for name in config[key] if name != "_target_"}
    target = get_object(config[key]["_target_"])
    signature = inspect.signature(target, eval_str=True)
    annotations = {p.name: p.annotation for p in signature.parameters.values()}
    unknown = sorted(set(node) - set(annotations))
    if unknown:
        raise InputError(f"{key}.{unknown[0]} is not an option of {key}; its options are {', '.join(annotations)}")
    schema = dataclasses.make_dataclass(key, [(name, annotations[name]) for name in node])
    values = _checked(config[key], schema, f"{key}.")
    try:
        signature.bind(**values, **more)
    except TypeError as error:
        raise InputError(f"{key}: {error}") from error
    try:
        return target(**values, **more)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


def _checked(node: DictConfig, schema: type, prefix: str = "") -> dict[str, Any]:
    checked = OmegaConf.structured(schema)
    for field in dataclasses.fields(schema):
        try:
            checked = OmegaConf.merge(checked, {field.name: node[field.name]})
        except MissingMandatoryValue as error:
            name = prefix + field.name
            raise InputError(f"{name} has no value: give one with {name}=...") from error
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0]
            raise InputError(f"{prefix}{error.full_key or field.name} has the wrong type: {problem}") from error
    return {field.name: checked[field.name] for field in dataclasses.fields(schema)}
