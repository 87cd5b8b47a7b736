"""Hydra's and OmegaConf's errors in one sentence: what was given, what is allowed, the closest match."""

import difflib
import re
from pathlib import Path

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


def is_usage_error(error: BaseException) -> bool:
    """Whether an error that left Hydra comes from the words on the command line."""
    hydra_plain = type(error) is ValueError and "can be specified" in str(error)
    return hydra_plain or isinstance(error, HydraException | OmegaConfBaseException)


def explain(error: BaseException, conf: Path, config_name: str, words: list[str]) -> str:
    """One sentence for an error of composition.

    Args:
        error: what left Hydra.
        conf: the folder of the configs.
        config_name: the command's config.
        words: what was typed after the subcommand.
    """
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, choice = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={choice}: there is no such choice; {allowed(choice, list(error.options))}"
    missing = re.search(r"Could not load '([^']+)/([^'/]+)'", text)  # one of several choices of a group
    if isinstance(error, MissingConfigException) and missing:
        options = sorted(path.stem for path in (conf / missing[1]).glob("*.yaml"))
        return f"{missing[1]}={missing[2]}: there is no such choice; {allowed(missing[2], options)}"
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read as key=value; quote it or write it as key='value'"
    if isinstance(error, SearchPathException):
        return f"{lines[0]}: give an existing folder to --config-dir"
    wrong = re.search(r"(?:Could not override|No match in the defaults list for) '([^'=]+)", text)
    if isinstance(error, ConfigCompositionException) and wrong:
        key = wrong[1]
        cause = error.__cause__
        if isinstance(cause, OmegaConfBaseException) and "not in struct" not in str(cause):
            return f"{key}: {str(cause).splitlines()[0]}"
        return f"{key}: there is no such key; {allowed(key, known_keys(conf, config_name, words, key))}"
    return " ".join(lines[:2])


def allowed(given: str, options: list[str]) -> str:
    """The closest option, and all of them where they are few."""
    close = difflib.get_close_matches(given, options, n=1, cutoff=0.5)
    if not close:  # the right key of another node: learning_rat for train.learning_rate
        close = [option for option in options if option.rpartition(".")[2] == given.rpartition(".")[2]][:1]
    hint = f"did you mean {close[0]}?" if close else ""
    if len(options) <= 12 or not close:
        hint = f"{hint} allowed are {', '.join(options)}".strip()
    return hint


def known_keys(conf: Path, config_name: str, words: list[str], wrong: str) -> list[str]:
    """Every key of the config as it would be without the wrong override, and the config groups."""
    others = [word for word in words if re.match(r"[\w/]+=", word) and not word.startswith((f"{wrong}=", "hydra"))]
    others = [word for word in others if "," not in word]  # of a sweep only what is the same in all its jobs
    with initialize_config_dir(str(conf), version_base="1.3"):
        try:
            config = compose(config_name, overrides=others)
        except (HydraException, OmegaConfBaseException):
            config = compose(config_name)
    return leaves(config)


def leaves(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of all values in a config, nodes included, `_target_` not."""
    names: list[str] = []
    for key in config:
        if key == "_target_":
            continue
        names.append(f"{prefix}{key!s}")
        node = config._get_node(key)
        if isinstance(node, DictConfig):
            names += leaves(node, f"{prefix}{key!s}.")
    return names
