"""The command line: one function for each subcommand; every word after the subcommand goes to Hydra."""

import os
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated

import typer
from omegaconf import DictConfig

from cal_cli.commands.hydra_app import run

Task = Callable[[DictConfig], None]
app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


def command(name: str) -> Callable[[Task], Task]:
    """Register a function of a composed config as `cal <name>`."""

    def register(task: Task) -> Task:
        def pass_words_to_hydra(context: typer.Context) -> None:
            run(name, task, context.args)

        settings = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
        app.command(name, help=task.__doc__, context_settings=settings, add_help_option=False)(pass_words_to_hydra)
        return task

    return register


def print_version(wanted: bool) -> None:
    """Print the version and exit, if `--version` is given."""
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


# each command is imported when it is called: importing torch takes seconds


@command("train")
def train(config: DictConfig) -> None:
    """Train a vision-language model with CE, CAL or another objective."""
    from cal_cli.commands.train import train

    train(config)


@command("eval")
def evaluate(config: DictConfig) -> None:
    """Score a checkpoint, or every run in a folder, on benchmarks."""
    from cal_cli.commands.evaluate import evaluate

    evaluate(config)


@command("noise-inject")
def noise_inject(config: DictConfig) -> None:
    """Write a data set in which the captions of some samples are wrong."""
    from cal_cli.commands.noise_inject import noise_inject

    noise_inject(config)


@command("data-check")
def data_check(config: DictConfig) -> None:
    """Read a data set once, as training will, and list everything that is wrong with it."""
    from cal_cli.commands.data_check import data_check

    data_check(config)


@command("data-audit")
def data_audit(config: DictConfig) -> None:
    """Rank samples, sentences and tokens by how much their images contradict them."""
    from cal_cli.commands.data_audit import data_audit

    data_audit(config)


@command("token-weight-dump")
def token_weight_dump(config: DictConfig) -> None:
    """Show how much each text token looks at the image."""
    from cal_cli.commands.token_weight_dump import token_weight_dump

    token_weight_dump(config)


@command("inspect")
def inspect(config: DictConfig) -> None:
    """Show where words look in the image, and what image tokens say."""
    from cal_cli.commands.inspect import inspect

    inspect(config)


@command("report")
def report(config: DictConfig) -> None:
    """Compare finished runs in tables and figures with intervals."""
    from cal_cli.commands.report import report

    report(config)


@command("study")
def study(config: DictConfig) -> None:
    """Train, evaluate and report all runs of an experiment."""
    from cal_cli.commands.study import study

    study(config)


@command("convert")
def convert(config: DictConfig) -> None:
    """Write a published MGM checkpoint as a model of this package."""
    from cal_cli.commands.convert import convert

    convert(config)


@command("bench")
def bench(config: DictConfig) -> None:
    """Measure the cost of a training step with CE and with CAL."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences torch's profiler; read when torch is imported
    from cal_cli.commands.bench import bench

    bench(config)


def main() -> None:
    """Run the command line `cal`."""
    app()
