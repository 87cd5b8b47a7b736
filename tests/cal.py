"""Run the command line as a user does: a process of its own, in a folder of its own."""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}
# a server that has imported the libraries forks a process for each call: importing them takes longer than most calls
SERVER = multiprocessing.get_context("forkserver")
COMMANDS = ("bench", "data_check", "evaluate", "noise_inject", "report", "token_weight_dump", "train")
SERVER.set_forkserver_preload([f"cal_cli.commands.{module}" for module in COMMANDS])


def cal(*words, folder, check=True, **environment):
    """Run `cal` in a folder; with `check`, fail unless it ends with 0."""
    if environment:
        result = subprocess.run(
            [sys.executable, "-m", "cal_cli", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, **environment},
        )
    else:
        result = forked(words, folder)
    if check:
        assert result.returncode == 0, result.stderr + result.stdout
    return result


def started(*words, folder):
    """`cal` as a process that goes on while the test looks at it or ends it; both streams in `stdout`."""
    return subprocess.Popen(
        [sys.executable, "-m", "cal_cli", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=ENVIRONMENT,
    )


def forked(words, folder):
    """What `subprocess.run` gives, from a fork of the server."""
    with tempfile.TemporaryDirectory() as name:
        streams = [Path(name) / "stdout", Path(name) / "stderr"]
        process = SERVER.Process(target=enter, args=(words, str(folder), *map(str, streams)))
        process.start()
        process.join()
        return subprocess.CompletedProcess(words, process.exitcode, *(path.read_text() for path in streams))


def enter(words, folder, *streams):
    """Become `cal <words>`, its streams in files."""
    os.chdir(folder)
    for number, path in enumerate(streams, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["cal", *words]
    from cal_cli.cli import main

    main()
