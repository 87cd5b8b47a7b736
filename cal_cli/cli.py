"""The command line: the subcommands and where they are; every word after a subcommand goes to Hydra."""

import gc
import os
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Annotated

import typer
from omegaconf import DictConfig

from cal_cli.commands.hydra_app import run

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
COMMANDS = {  # each is a function, named in Python's way, of the module of `cal_cli.commands` with its name
    "train": "Train a vision-language model with CE, CAL or another objective.",
    "eval": "Score a checkpoint, or every run in a folder, on benchmarks.",
    "noise-inject": "Write a data set in which the captions of some samples are wrong.",
    "data-check": "Read a data set once, as training will, and list everything that is wrong with it.",
    "data-audit": "Rank samples, sentences and tokens by how much their images contradict them.",
    "token-weight-dump": "Show how much each text token looks at the image.",
    "inspect": "Show where words look in the image, and what image tokens say.",
    "report": "Compare finished runs in tables and figures with intervals.",
    "study": "Train, evaluate and report all runs of an experiment.",
    "convert": "Write a published MGM checkpoint as a model of this package.",
    "bench": "Measure the cost of a training step with CE and with CAL.",
}


def carry_out(name: str, config: DictConfig) -> None:
    """Carry out a subcommand; it is imported only now, because importing torch takes seconds."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # silences torch's profiler; read when torch is imported
    function = {"eval": "evaluate"}.get(name, name.replace("-", "_"))
    gc.disable()
    module = import_module(f"cal_cli.commands.{function}")
    if not gc.get_freeze_count():  # else what an earlier job of a sweep has left would never be freed
        gc.freeze()  # nothing of the libraries is garbage: searching them takes a second of each start
    gc.enable()
    getattr(module, function)(config)


def register(name: str, help_text: str) -> None:
    """Add a subcommand, whose words go to Hydra as they are."""

    def pass_words_to_hydra(context: typer.Context) -> None:
        run(name, partial(carry_out, name), context.args)

    settings = {"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
    app.command(name, help=help_text, context_settings=settings, add_help_option=False)(pass_words_to_hydra)


for command, description in COMMANDS.items():
    register(command, description)


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


def main() -> None:
    """Run the command line `cal`."""
    app()
