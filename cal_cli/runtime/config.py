"""From a composed Hydra config to typed values and objects; a wrong type is reported before any work starts."""

import dataclasses
import hashlib
import inspect
import math
import re
from collections.abc import Sequence
from typing import Any, TypeVar, get_type_hints

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from cal_cli.runtime.errors import InputError, SettingError

T = TypeVar("T")
# modules of targets in configs and results that earlier versions wrote, and where they are now
MOVED = {
    "cal_cli.toy.scenes": "cal_cli.toy.world",
    "cal_cli.toy.benchmark": "cal_cli.toy.world",
    "cal_cli.data.hf_datasets": "cal_cli.data.tables",
    "cal_cli.models.mgm_source": "cal_cli.models.mgm.source",
    "cal_cli.evaluation.captions": "cal_cli.evaluation.metrics",
    "cal_cli.evaluation.region_looks": "cal_cli.evaluation.metrics",
}
NAME_LENGTH = 120  # characters of a folder's name
KEPT_WHOLE = re.compile(r"[+~]*(objective|noise|seed)\b")  # overrides that tell the runs of a comparison apart


def name_folder(overrides: Sequence[str], excluded: Sequence[str] = ()) -> str:
    """Name a run's folder after its overrides, in characters that no shell needs quoted; `default` for none.

    Overrides of the keys `excluded`, and of keys within them, are left out.

    A name longer than 120 characters is shortened and ends in a hash of all overrides. Values that are paths lose
    their folders first; then overrides other than those of objective, noise and seed are left out.
    """
    left_out = tuple(f"{key}." for key in excluded)
    items = sorted(item for item in overrides if not f"{item.lstrip('+~').partition('=')[0]}.".startswith(left_out))
    name = _clean(items) or "default"
    if len(name) <= NAME_LENGTH:
        return name
    digest = hashlib.sha256("__".join(items).encode()).hexdigest()[:8]
    items = [re.sub(r"=.*/", "=", item) for item in items]
    kept = {item for item in items if KEPT_WHOLE.match(item)}
    for item in sorted(sorted(set(items) - kept), key=len):  # the same order in every process
        if len(_clean([*kept, item])) + len(digest) + 1 <= NAME_LENGTH:
            kept.add(item)
    return f"{_clean(sorted(kept))[: NAME_LENGTH - len(digest) - 1]}-{digest}"


def _clean(items: Sequence[str]) -> str:
    return re.sub(r"[^\w.+-]+", "_", "__".join(items).replace("=", "-"))


# keys of a run's config that say how it is carried out and reported, not what it computes: they do not name its folder
UNNAMED = ("resume", "force", "plan", "report_to", "launch", "benchmark", "evaluate_every", "evaluate_limit")
OmegaConf.register_new_resolver("folder_name", name_folder, replace=True)
OmegaConf.register_new_resolver("unnamed_keys", lambda: ["name", "experiment", *UNNAMED], replace=True)
OmegaConf.register_new_resolver("command_name", lambda config_name: config_name.replace("_", "-"), replace=True)


SEEDS = 2**32  # numpy's generators take no larger ones


def limited(least: float | None = None, below: float | None = None, choices: Sequence[Any] = ()) -> Any:
    """Declare the range of a setting, as the default of a field for `check_types`; null is within every range."""
    return dataclasses.field(metadata={"least": least, "below": below, "choices": choices})


def list_names(value: Any) -> list[str | None]:
    """Return the names that a key such as `checkpoint` has, one or a list."""
    return list(value) if OmegaConf.is_list(value) else [value]


def check_types(config: DictConfig, schema: type[T]) -> T:
    """Check a resolved config against a dataclass and return an instance of it; `Any` fields stay configs.

    Raises InputError for a missing value, a wrong type, or a value outside the range that `limited` declares.
    """
    values = _check_values(config, schema)
    for field in dataclasses.fields(schema):  # type: ignore[arg-type]
        check_range(field.name, values[field.name], **field.metadata)
    return schema(**values)


def check_range(
    name: str, value: Any, least: float | None = None, below: float | None = None, choices: Sequence[Any] = ()
) -> None:
    """Raise InputError if a value is outside its range, or not finite; null is within every range."""
    if value is None:
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise SettingError(f"{name}={value}: must be a finite number")
    if choices and value not in choices:
        *others, last = ("null" if choice is None else str(choice) for choice in choices)
        raise SettingError(f"{name}={value}: allowed are {', '.join(others)} and {last}")
    if least is not None and below is not None and not least <= value < below:
        kind = "a share" if below == 1 else "a number"
        raise SettingError(f"{name}={value}: allowed is {kind} from {least} to below {below}")
    if least is not None and value < least:
        raise SettingError(f"{name}={value}: must be at least {least}")


def build(config: DictConfig, key: str, **more: Any) -> Any:
    """Call the `_target_` of the node `config[key]` with the node's values, checked against its annotations.

    Raises InputError if the target cannot be imported, a value is missing or has the wrong type, or the target refuses
    it with a ValueError.
    """
    node = {name: config[key]._get_node(name) for name in config[key] if name != "_target_"}
    path = update_target(config[key]["_target_"])
    try:
        target = get_object(path)
    except Exception as error:  # Hydra wraps whatever an import raises
        cause = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"{key}._target_={path}: cannot be imported ({cause}); its module must be on the PYTHONPATH"
        ) from error
    types = get_argument_types(target)
    unknown = sorted(set(node) - set(types))
    if unknown:
        raise InputError(f"{key}.{unknown[0]} is not an option of {key}; its options are {', '.join(types)}")
    # parts with a target of their own, such as an objective's rule; `Any` arguments stay configs
    parts = [
        name
        for name, value in node.items()
        if isinstance(value, DictConfig) and "_target_" in value and types[name] is not Any
    ]
    schema = dataclasses.make_dataclass(key, [(name, Any if name in parts else types[name]) for name in node])
    values = _check_values(config[key], schema, f"{key}.")
    for name in parts:
        values[name] = build(OmegaConf.create({f"{key}.{name}": values[name]}), f"{key}.{name}")
    try:
        inspect.signature(target).bind(**values, **more)
    except TypeError as error:
        raise InputError(f"{key}: {error}") from error
    try:
        return target(**values, **more)
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{key}: {error}") from error


def update_target(path: str) -> str:
    """Return the dotted path of a target under the module that has it now."""
    module, _, name = path.rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def get_argument_types(target: Any) -> dict[str, Any]:
    """Return the type of each argument of a function or class; `Any` where none is given.

    The fields of a dataclass are resolved in the module of the class that declares them, so that a subclass need not
    import the names that the annotations of its base class use.
    """
    plain_class = isinstance(target, type) and "__dataclass_fields__" not in vars(target)
    try:
        hints = get_type_hints(target.__init__ if plain_class else target)
    except NameError as error:
        raise InputError(
            f"{target.__module__}.{target.__name__}: {error} in the annotations of its arguments"
        ) from error
    return {name: hints.get(name, Any) for name in inspect.signature(target).parameters}


def _check_values(node: DictConfig, schema: type, prefix: str = "") -> dict[str, Any]:
    checked = OmegaConf.structured(schema)
    for field in dataclasses.fields(schema):
        try:
            checked.merge_with({field.name: node[field.name]})  # in place: `OmegaConf.merge` copies all fields
        except MissingMandatoryValue as error:
            name = prefix + field.name
            raise InputError(f"{name} has no value: give one with {name}=...") from error
        except OmegaConfBaseException as error:
            problem = str(error).splitlines()[0]
            raise SettingError(f"{prefix}{error.full_key or field.name} has the wrong type: {problem}") from error
    return {field.name: checked[field.name] for field in dataclasses.fields(schema)}
