"""Explain Hydra's and OmegaConf's errors in one sentence: what was given, what is allowed, the closest match."""

import difflib
import re
import shlex
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

FEW = 12  # options that are listed completely


def is_usage_error(error: BaseException) -> bool:
    """Return whether an error raised by Hydra comes from the words on the command line."""
    plain = type(error) is ValueError and re.search("can be specified|Config group override", str(error)) is not None
    path = isinstance(error, OSError) and error.filename is not None  # an output folder that cannot be made
    return plain or path or isinstance(error, HydraException | OmegaConfBaseException)


def explain(error: BaseException, conf: Path, config_name: str, words: list[str]) -> str:
    """Explain an error of composing `config_name` from the folder `conf` and the typed words, in one sentence."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}; check the path and its permissions"
    text, command = str(error), f"cal {config_name.replace('_', '-')}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        hint = suggest(choice, list(error.options)) or f"{command} --help lists them"
        return f"{group}={choice}: there is no such choice; {hint}"
    missing = re.search(r"Could not load '([^']+)/([^'/]+)'", text)  # one of several choices of a group
    if isinstance(error, MissingConfigException) and missing:
        options = sorted(path.stem for path in (conf / missing[1]).glob("*.yaml"))
        return f"{missing[1]}={missing[2]}: there is no such choice; {suggest(missing[2], options)}"
    if isinstance(error, OverrideParseException):
        key, _, value = str(error.override).partition("=")
        quoted = value.strip("'\"").replace("\\", "\\\\").replace('"', '\\"')
        typed = shlex.quote(f'{key}="{quoted}"')
        return f"{error.override}: cannot be read as key=value; type {typed} if its value is a text"
    if "Config group override" in text:
        word = next((word for word in words if re.search(r"=.*\bnull\b", word)), "null")
        return f"{word}: null is no choice of a group; {command} --help lists the choices"
    if isinstance(error, SearchPathException):
        return f"{lines[0]}: give an existing folder to --config-dir"
    several = re.search(r"Ambiguous value for argument '(([^=']+)=([^']+))'", text)
    if several:
        return f"{several[1]}: several values; {command} -m runs each of them, {several[2]}=[{several[3]}] is one list"
    wrong = re.search(r"(?:Could not override|No match in the defaults list for) '([^'=]+)", text)
    if isinstance(error, ConfigCompositionException) and wrong:
        key, cause = wrong[1], error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "not in struct" not in str(cause):
            return f"{key}: {str(cause).splitlines()[0]}"
        owners = find_commands_with_group(conf, key)
        if owners:
            return f"{key}: {command} has no such choices; they belong to {' and '.join(owners)}"
        hint = suggest(key, list_known_keys(conf, config_name, words, key))
        return f"{key}: there is no such key; {hint or f'{command} --help lists the keys'}"
    return " ".join(lines[:2])


def suggest(given: str, options: list[str]) -> str:
    """Name the closest options, and all of them if they are few; empty if many options are all different."""
    few = len(options) <= FEW
    close = difflib.get_close_matches(given, options, n=1 if few else 3, cutoff=0.5 if few else 0.6)
    if not close:  # the right key of another node: ratio for noise.ratio
        close = [option for option in options if option.rpartition(".")[2] == given.rpartition(".")[2]][:3]
    hint = f"did you mean {close[0]}?" if close else ""
    hint += f" (or {' or '.join(close[1:])})" if close[1:] else ""
    return f"{hint} allowed are {', '.join(options)}".strip() if few else hint


def find_commands_with_group(conf: Path, group: str) -> list[str]:
    """Return the commands whose config has a group, such as `cal eval` for `benchmark`; empty if there is none."""
    if not (conf / group).is_dir():
        return []
    commands = []
    for path in sorted(conf.glob("*.yaml")):
        defaults = yaml.safe_load(path.read_text())["defaults"]
        names = {key.removeprefix("optional ") for entry in defaults if isinstance(entry, dict) for key in entry}
        commands += [f"cal {path.stem.replace('_', '-')}"] if group in names else []
    return commands


def list_known_keys(conf: Path, config_name: str, words: list[str], wrong: str) -> list[str]:
    """List every key of the config as it would be without the wrong override."""
    others = [word for word in words if re.match(r"[\w/]+=", word) and not word.startswith((f"{wrong}=", "hydra"))]
    others = [word for word in others if "," not in word]  # in a sweep, what all its jobs share
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            config = compose(config_name, overrides=others)
        except (HydraException, OmegaConfBaseException):
            config = compose(config_name)
    return list_keys(config)


def list_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """List the dotted names of all values and nodes of a config, without `_target_`."""
    names: list[str] = []
    for key in config:
        if key == "_target_":
            continue
        names.append(f"{prefix}{key!s}")
        node = config._get_node(key)
        if isinstance(node, DictConfig):
            names += list_keys(node, f"{prefix}{key!s}.")
    return names
