"""The command line: one thin function a subcommand; every word after it goes to Hydra as it is."""

import functools
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import hydra
import typer
from hydra.utils import get_method
from omegaconf import DictConfig, OmegaConf

import cal_cli.config  # noqa: F401 (registers the resolver that the configs use)
from cal_cli.errors import InputError
from cal_cli.usage import explain, is_usage_error

PACKAGE = Path(__file__).parent
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"  # a wheel, or a checkout

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
to_hydra = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cal_cli {version('cal_cli')}")
        raise typer.Exit()


@app.callback()
def cal(
    show_version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Which text tokens look at the image, and what happens when training favours them?"""


@app.command(context_settings=to_hydra, add_help_option=False)
def train(context: typer.Context) -> None:
    """Train a vision-language model with CE, CAL or PMI."""
    run("train", "cal_cli.training.run.train", context.args)


@app.command("eval", context_settings=to_hydra, add_help_option=False)
def evaluate(context: typer.Context) -> None:
    """Score a checkpoint, or every run of a folder, on a benchmark."""
    run("eval", "cal_cli.evaluation.run.evaluate", context.args)


@app.command("noise-inject", context_settings=to_hydra, add_help_option=False)
def noise_inject(context: typer.Context) -> None:
    """Write a data set in which some samples' captions are exchanged."""
    run("noise_inject", "cal_cli.data.noise_inject.noise_inject", context.args)


@app.command("data-check", context_settings=to_hydra, add_help_option=False)
def data_check(context: typer.Context) -> None:
    """Read a data set once, as training will, and name all that is bad in it."""
    run("data_check", "cal_cli.data.check.data_check", context.args)


@app.command("token-weight-dump", context_settings=to_hydra, add_help_option=False)
def token_weight_dump(context: typer.Context) -> None:
    """Show how much each text token looks at the image."""
    run("token_weight_dump", "cal_cli.inspection.run.token_weight_dump", context.args)


@app.command(context_settings=to_hydra, add_help_option=False)
def report(context: typer.Context) -> None:
    """Compare finished runs: tables and figures with intervals."""
    run("report", "cal_cli.reporting.run.report", context.args)


@app.command(context_settings=to_hydra, add_help_option=False)
def bench(context: typer.Context) -> None:
    """Measure what a training step costs, with CE and with CAL."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else torch's profiler prints; read when torch is loaded
    run("bench", "cal_cli.bench.run.bench", context.args)


def run(config_name: str, path: str, words: list[str]) -> None:
    """Hand the words to Hydra and run the task at `path` (package.module.function) with the composed config.

    Exits with 2 and one sentence on the standard error for anything that the user can put right; with
    `HYDRA_FULL_ERROR=1` the whole traceback comes instead.
    """
    # kept under a name of ours, as processes that this one starts inherit what is set below
    full_error = os.environ.setdefault("CAL_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0")) == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises instead of printing and exiting with 1
    sys.argv = [f"cal {config_name.replace('_', '-')}", *words]
    task = functools.partial(run_task, path=path, full_error=full_error)
    functools.update_wrapper(task, run_task)
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=config_name)(task)()
    except Exception as error:
        if full_error or not is_usage_error(error):
            raise
        fail(explain(error, CONF, config_name, words))


def run_task(config: DictConfig, path: str, full_error: bool) -> None:
    """The task that Hydra runs, here or in a worker of one of its launchers."""
    import transformers  # here, so that `cal --help` need not wait for it

    # the library's own bars, one for each loading and saving, would break ours
    transformers.utils.logging.disable_progress_bar()
    try:
        get_method(path)(OmegaConf.create(OmegaConf.to_container(config, resolve=True)))
    except InputError as error:
        if full_error:
            raise
        fail(str(error))


def fail(message: str) -> None:
    """End with exit code 2 and one sentence; of several processes of a run the first speaks for all that agree."""
    if os.environ.get("RANK", "0") != "0":
        time.sleep(30)  # the first one's end ends this
    typer.echo(f"cal: {message}", err=True)
    raise SystemExit(2)


def main() -> None:
    """The entry point `cal`."""
    app()
