"""Run a subcommand with Hydra: compose its config, call it, and report wrong input with exit code 2."""

import difflib
import functools
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import typer
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
    SearchPathException,
)
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from wrapt import register_post_import_hook

import cal_cli.runtime.config  # noqa: F401 (registers the resolver that the configs use)
from cal_cli.runtime.errors import InputError, SettingError

PACKAGE = Path(__file__).parent.parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # in a wheel, or in a checkout
OPTIONAL = ("experiment", "peft", "stage")  # groups of which nothing may be chosen
STUDY_KEYS = ("experiment", "jobs", "benchmark", "plan", "hydra", "words")  # other words are those of `cal train`


@dataclass(frozen=True)
class Job:
    """What Hydra knows about the running job."""

    words: list[str]  # the command line that regenerates it
    folder: Path  # its output folder
    choices: dict[str, str | None]  # the choice of each config group

    @property
    def command(self) -> str:
        """The command line that regenerates the job, quoted for a shell."""
        return shlex.join(self.words)


def get_job() -> Job:
    """Return the running job."""
    settings = HydraConfig.get()
    words = ["cal", str(settings.job.config_name).replace("_", "-"), *get_config_dirs()]
    choices = {str(group): choice for group, choice in settings.runtime.choices.items()}
    folder = Path(settings.runtime.output_dir)
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    return Job([*words, *settings.overrides.task], folder, choices)


def get_config_dirs() -> list[str]:
    """Return the words that give the running job its further folders of configs."""
    sources = [source for source in HydraConfig.get().runtime.config_sources if source.provider == "command-line"]
    return [word for source in sources for word in ("--config-dir", source.path)]


def run(name: str, task: Callable[[DictConfig], None], words: list[str]) -> None:
    """Compose the config of `cal <name>` from the words, and call the task with it.

    Exits with 2 and one sentence on the standard error for any wrong input; `HYDRA_FULL_ERROR=1` shows the traceback.
    """
    config_name = name.replace("-", "_")
    # kept under our own name, because the processes that this one starts inherit what is set below
    full_error = os.environ.setdefault("CAL_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise, instead of printing and exiting with 1
    logging.getLogger().addHandler(logging.NullHandler())  # libraries' log lines are not ours
    words = [name_nothing(word) for word in words]
    words = [quote_path(word) for word in (gather_train_words(words) if name == "study" else words)]
    if name == "bench" and has_sweep(words):
        words = [*words, "--multirun"]
    sys.argv = [f"cal {name}", *words]
    failed: list[tuple[str, Any]] = []  # the jobs of a sweep that failed, and their exit codes
    call = functools.partial(run_task, task=task, full_error=full_error, failed=failed)
    functools.update_wrapper(call, run_task)
    try:
        if "--help" in words or "-h" in words:
            print_help(config_name, words)
            return
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(call)()
    except Exception as error:
        if full_error or not is_usage_error(error):
            raise
        fail(explain(error, CONF, config_name, words))
    if failed:
        commands = "".join(f"\n  {command}" for command, _ in failed)
        typer.echo(f"cal: {len(failed)} of the sweep's jobs failed:{commands}", err=True)
        raise SystemExit(max(failed, key=lambda job: job[1] != 2)[1])


def gather_train_words(words: list[str]) -> list[str]:
    """Gather what `cal study` passes on to `cal train` in its key `words`.

    `experiment` and `benchmark` become `experiment_name` and `benchmark_name`: for Hydra they are groups, whose files
    are configs of `cal train` and `cal eval`. Keys of a benchmark are for both.
    """
    own, passed_on = [], []
    for word in words:
        key = re.split(r"[=@]", word.lstrip("+~"))[0]
        is_own = key.partition(".")[0] in STUDY_KEYS and not key.startswith("benchmark.")
        if is_own or "=" not in word or word.startswith("-"):
            own.append(re.sub(r"^(experiment|benchmark)=", r"\1_name=", word))
        else:
            passed_on.append(word)
    quoted = ", ".join('"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"' for word in passed_on)
    return [*own, f"words=[{quoted}]"] if passed_on else own


def name_nothing(word: str) -> str:
    """Replace null, which Hydra takes for no choice of a group, by `none` in the groups that have it."""
    group, _, choices = word.partition("=")
    if group not in OPTIONAL:
        return word
    return f"{group}={','.join('none' if choice == 'null' else choice for choice in choices.split(','))}"


def has_sweep(words: list[str]) -> bool:
    """Return whether a word gives several values to a key."""
    try:
        return any(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(words))
    except HydraException:  # words that are no overrides; Hydra explains them, or they are its own flags
        return False


def quote_path(word: str) -> str:
    """Quote the value of an override as text if it is the path of something that exists, and Hydra reads it otherwise.

    Without quotes, brackets, commas, `=` and other signs in a path are part of Hydra's grammar.
    """
    key, _, value = word.partition("=")
    if re.fullmatch(r"[A-Za-z0-9_./-]*", value) or not os.path.exists(value):
        return word
    try:
        override = OverridesParser.create().parse_override(word)
        if not override.is_sweep_override() and override.value() == value:
            return word
    except HydraException:
        pass
    escaped = re.sub(r'(\\*)("|$)', r"\1\1\2", value).replace('"', '\\"')
    return f'{key}="{escaped}"'


def run_task(
    config: DictConfig, task: Callable[[DictConfig], None], full_error: bool, failed: list[tuple[str, Any]]
) -> None:
    """The task that Hydra runs, in this process or in a job of one of its launchers.

    A sweep in this process goes on after a job that failed, which is added to `failed`; not after an interruption, or a
    setting that was typed wrong.
    """
    try:
        carry_out(config, task, full_error)
    except SystemExit as end:
        settings = HydraConfig.get()
        alone = settings.mode != RunMode.MULTIRUN or not settings.launcher._target_.endswith("BasicLauncher")
        if alone or full_error or end.code not in (1, 2) or isinstance(end.__context__, SettingError):
            raise
        failed.append((get_job().command, end.code))


def carry_out(config: DictConfig, task: Callable[[DictConfig], None], full_error: bool) -> None:
    """Call the task, and report wrong input in one sentence."""
    register_post_import_hook(silence, "transformers")  # when a command imports it: a report or a plan does not
    try:
        task(OmegaConf.create(OmegaConf.to_container(config, resolve=True)))  # type: ignore[arg-type]
    except (InputError, OmegaConfBaseException) as error:  # the latter: an interpolation of a missing key
        if full_error:
            raise
        fail(str(error) if isinstance(error, InputError) else str(error).splitlines()[0])
    except OSError as error:
        if full_error or not is_usage_error(error):
            raise
        fail(explain(error, CONF, "", []))


def silence(transformers: Any) -> None:
    """Hide bars of loading and saving, which would disturb ours, and requests that we report in one sentence."""
    from huggingface_hub.utils import logging as hub_logging

    transformers.utils.logging.disable_progress_bar()
    hub_logging.set_verbosity_error()


def print_help(config_name: str, words: list[str]) -> None:
    """Print a command's help: what it does, the choices of its groups, those of `--config-dir` included, its keys."""
    added = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--config-dir", "-cd")]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = compose(config_name, return_hydra_config=True).hydra
    lines = []
    groups = ["experiment"] if config_name == "study" else settings.runtime.choices
    for group in sorted(group for group in groups if "/" not in group):
        options = {path.stem for folder in (str(CONF), *added) for path in Path(folder, group).glob("*.yaml")}
        lines.append(f"  {group}: {', '.join(sorted(options))}")
    # the template has a line `$KEYS`, or `$KEYS: ` and the keys to describe
    before, keys, after = re.split(r"\$KEYS(.*)\n", settings.help.template)
    described = describe_keys(config_name, keys.removeprefix(":").split(), settings.runtime.choices)
    described += [] if after.startswith("  ") else [""]  # else the template has more of them
    page = [before, "Choices (group=choice):", *(lines or ["  none"]), "", "Keys (key=value):", *described, after]
    typer.echo("\n".join(page))


def describe_keys(config_name: str, wanted: Sequence[str], choices: Mapping[str, str]) -> list[str]:
    """Describe keys of a config by the comments in its YAML: `wanted` ones, or all that have a comment."""
    described: dict[str, str] = {}
    files = {config_name: ""} | {
        f"{key.partition('.')[0]}": f"{key.partition('.')[0]}." for key in wanted if "." in key
    }
    for name, prefix in files.items():
        path = CONF / (f"{name}/{choices[name]}.yaml" if name in choices else f"{name}.yaml")
        parent = ""
        for line in path.read_text().partition("\nhydra:")[0].splitlines() if path.is_file() else ():
            if part := re.match(r"( *)(- )?(\w+): *(.*?)(?: +# (.*))?$", line):
                indent, _, key, value, comment = part.groups()
                parent = parent if indent else f"{key}." if not value else ""
                key = f"{prefix}{parent if indent and not part[2] else ''}{key}".removesuffix("_name")
                if (comment and not part[2]) or key in wanted:
                    shown = f"{key}={re.sub(r', +', ',', value).replace('???', '...')}"
                    described[key] = f"  {shown:<26} {comment or ''}"
    return [described[key] for key in wanted or described if key in described]


def fail(message: str) -> None:
    """End with exit code 2 and one sentence; of several processes of a run, the first reports."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(30)  # the end of the first process ends this one
    typer.echo(f"cal: {message}", err=True)
    raise SystemExit(2)


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
