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
COMMANDS = ["bench", "data_audit", "data_check", "evaluate", "inspect", "noise_inject", "report", "study", "train"]
SERVER.set_forkserver_preload([f"cal_cli.commands.{module}" for module in COMMANDS])


def cal(*words, folder, check=True, before="", **environment):
    """Run `cal` in a folder, after the code `before`; with `check`, fail unless it ends with 0."""
    if environment:
        result = subprocess.run(
            [sys.executable, "-m", "cal_cli", *words],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**ENVIRONMENT, **environment},
        )
    else:
        result = Running(*words, folder=folder, before=before).complete()
    if check:
        assert result.returncode == 0, result.stderr + result.stdout
    return result


class Running:
    """`cal` as a process that goes on while the test looks at it or ends it, with methods of `subprocess.Popen`."""

    def __init__(self, *words, folder, before=""):
        self.words = words
        self.streams = tempfile.TemporaryDirectory()
        self.paths = [Path(self.streams.name) / name for name in ("stdout", "stderr")]
        self.process = SERVER.Process(target=enter, args=(words, str(folder), *map(str, self.paths), before))
        self.process.start()
        self.pid, self.kill, self.terminate = self.process.pid, self.process.kill, self.process.terminate

    def poll(self):
        return self.process.exitcode

    returncode = property(poll)

    def read(self):
        """What it has printed, of both streams."""
        return "".join(path.read_text() for path in self.paths if path.exists())

    def wait(self, timeout=None):
        self.process.join(timeout)
        return self.poll()

    def communicate(self, timeout=None):
        self.wait(timeout)
        return self.read(), None

    def complete(self):
        """Wait for its end; return what `subprocess.run` does."""
        self.wait()
        return subprocess.CompletedProcess(self.words, self.poll(), *(path.read_text() for path in self.paths))


def enter(words, folder, stdout, stderr, before=""):
    """Become `cal <words>`, its streams in files, after some code."""
    os.chdir(folder)
    for number, path in enumerate((stdout, stderr), start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    sys.argv = ["cal", *words]
    exec(before, {})
    from cal_cli.cli import main

    main()
