"""`cal study`: the runs of an experiment, trained where they are missing, evaluated and reported."""

import itertools
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console

from cal_cli.commands.hydra_app import get_config_dirs
from cal_cli.runtime.config import build, check_types, limited, name_folder
from cal_cli.runtime.console import make_console
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.runs import find_completed_runs, is_completed, read_summary


@dataclass(kw_only=True)
class StudyConfig:
    """The types and ranges of `conf/study.yaml`, which documents each key."""

    experiment_name: str
    words: list[str]
    jobs: int = limited(1)
    benchmark_name: str
    plan: bool


@dataclass(frozen=True)
class Run:
    """One run of a study."""

    words: list[str]  # of `cal train`
    folder: Path
    completed: bool

    @property
    def command(self) -> str:
        """The command that trains it, quoted for a shell."""
        return shlex.join(["cal", "train", *self.words])


class Children:
    """The processes that a study starts; on SIGTERM they are sent it too, and `stopped` is true."""

    def __init__(self) -> None:
        self.stopped = False
        self._running: set[subprocess.Popen] = set()

    def __enter__(self) -> "Children":
        self._before = signal.signal(signal.SIGTERM, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGTERM, self._before)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True
        for process in list(self._running):
            process.terminate()

    def run(self, words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `cal` with these words, as `subprocess.run` does."""
        command = [sys.executable, "-m", "cal_cli", *words]
        with subprocess.Popen(command, text=True, **options) as process:
            self._running.add(process)
            output, errors = process.communicate()
            self._running.discard(process)
        return subprocess.CompletedProcess(command, process.returncode, output, errors)


def study(config: DictConfig) -> None:
    """Train what is missing, evaluate and report; exit with 1 if a run failed, and name its command."""
    if OmegaConf.is_missing(config, "experiment_name"):  # as gather_train_words names it
        raise InputError("experiment has no value: give one with experiment=..., such as experiment=figure3")
    settings = check_types(config, StudyConfig)
    console = make_console()
    base, runs = list_runs(settings)
    benchmark_words = [word for word in settings.words if word.startswith("benchmark.")]
    missing = [run for run in runs if not run.completed]
    console.print(
        f"{settings.experiment_name}: {len(runs)} runs, {len(runs) - len(missing)} completed"
        + (f"; {len(missing)} to train, {settings.jobs} at a time" if missing else "")
    )
    known = [seconds for run in runs if run.completed and (seconds := read_summary(run.folder).get("wall_seconds"))]
    if missing and known:
        console.print(f"about {estimate(known, len(missing), settings.jobs)}, as the completed runs took")
    if settings.plan:
        for run in missing:
            console.print(run.command, markup=False, soft_wrap=True)
        return
    if missing:
        check_benchmark(settings.benchmark_name, benchmark_words, base)
    with Children() as children:
        failed = train_runs(missing, known, settings.jobs, children, console)
        folder = f"runs/train/{base.name}"
        completed = find_completed_runs(Path(folder))
        if completed and not any((run / "checkpoint").is_dir() for run in completed):
            console.print(f"{folder}: these runs train a projector only, which cannot be evaluated alone")
        elif completed:
            import torch  # here, so that plan=true is fast

            several = settings.jobs > 1 and not torch.cuda.is_available()
            launch = ["launch=ddp", f"launch.processes={settings.jobs}"] if several else []
            benchmark = [f"benchmark={settings.benchmark_name}", *benchmark_words]
            report = [f"runs={folder}", f"results={settings.benchmark_name}", f"output=runs/report/{base.name}"]
            call(children, "eval", *benchmark, f"checkpoint={folder}", "print_table=false", *launch)
            call(children, "report", *report)
    for run, message in failed:
        console.print(f"failed: {message}\n  {run.command}", markup=False, soft_wrap=True)
    if failed:
        raise SystemExit(1)


def check_benchmark(name: str, words: list[str], base: DictConfig) -> None:
    """Build a benchmark as `cal eval` will, so that nothing is trained in vain; `base` is the runs' own config.

    Raises InputError if it cannot be built.
    """
    try:
        node = (base if name == "scenes" else compose("eval", overrides=[f"benchmark={name}", *words])).benchmark
        OmegaConf.resolve(node)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"benchmark={name}: {str(error).splitlines()[0]}") from error
    if "benchmarks" not in node:  # a group of benchmarks, such as paper
        build(OmegaConf.create({"benchmark": node}), "benchmark")


def list_runs(settings: StudyConfig) -> tuple[DictConfig, list[Run]]:
    """List the runs of an experiment: the config that they share, and one run for each combination of its axes.

    The axes are those of the experiment's `hydra.sweeper.params`; `words` replace or add some.

    Raises InputError if there is no such experiment, it has no axes, or a word is wrong.
    """
    known = [name for name in GlobalHydra.instance().config_loader().get_group_options("experiment") if name != "none"]
    if settings.experiment_name not in known:
        raise InputError(f"experiment={settings.experiment_name}: allowed are {', '.join(known)}")
    fixed, given, axes = [], set(), {}
    parser = OverridesParser.create()
    try:
        for word in settings.words:
            override = parser.parse_override(word)
            if override.is_sweep_override():
                axes[override.get_key_element()] = list(override.sweep_string_iterator())
            else:
                fixed.append(word)
                given.add(override.get_key_element())
        base = compose("train", overrides=[f"experiment={settings.experiment_name}", *fixed], return_hydra_config=True)
        if base.evaluate_every is not None and settings.benchmark_name != "scenes":
            fixed.append(f"benchmark={settings.benchmark_name}")
        params = base.hydra.sweeper.get("params") or {}
        for key, value in params.items():
            if key in given:
                continue
            override = parser.parse_override(f"{key}={value}")
            several = override.is_sweep_override()
            axes.setdefault(key, list(override.sweep_string_iterator()) if several else [str(value)])
        if not axes and not params:
            raise InputError(
                f"experiment={settings.experiment_name}: has no axes; give them in its hydra.sweeper.params, or as "
                "words such as seed=0,1,2"
            )
        runs = []
        excluded = base.hydra.job.config.override_dirname.exclude_keys
        grid = [
            [f"{key}={value}" for key, value in zip(axes, values, strict=True)]
            for values in itertools.product(*axes.values())
        ]
        also = [words.split() for words in base.get("study", {}).get("also", [])]  # runs that are not of the grid
        for chosen in [*also, *grid]:
            words = [f"experiment={settings.experiment_name}", *fixed, *chosen]
            folder = Path(base.hydra.run.dir).parent / name_folder(words, excluded)
            if any("${" in word for word in words):  # an interpolation, which the run resolves in its folder's name
                folder = Path(compose("train", overrides=words, return_hydra_config=True).hydra.run.dir)
            completed = False
            if (folder / "summary.json").is_file():  # composing a config takes half a second
                composed = compose("train", overrides=words)
                OmegaConf.resolve(composed)
                completed = is_completed(folder, composed)
            runs.append(Run([*get_config_dirs(), *words], folder, completed))
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(f"experiment={settings.experiment_name}: {str(error).splitlines()[0]}") from error
    return base, runs


def train_runs(
    runs: list[Run], known: list[float], jobs: int, children: Children, console: Console
) -> list[tuple[Run, str]]:
    """Train runs in processes of their own, several at a time; return those that failed, and why.

    Each process has an equal share of the cores. `known` are the seconds of runs that are completed already. A run that
    another process is training is waited for. On SIGTERM the processes save and end, and so does this one.
    """
    threads = max((os.cpu_count() or 1) // jobs, 1)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    failed: list[tuple[Run, str]] = []
    seconds = list(known)
    with ThreadPoolExecutor(jobs) as pool:
        waiting: dict[Future, tuple[Run, float]] = {}
        remaining = iter(runs)

        def start_next() -> None:
            for run in itertools.islice(remaining, jobs - len(waiting)):
                waiting[pool.submit(train_run, run, environment, children)] = run, time.perf_counter()

        start_next()
        done = 0
        while waiting:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                run, start = waiting.pop(future)
                code, message = future.result()
                done += 1
                if children.stopped or code == 130:  # the signal or Ctrl-C reached all processes, which have saved
                    raise SystemExit(130)
                if code:
                    failed.append((run, message))
                else:
                    seconds.append(time.perf_counter() - start)
                left = estimate(seconds, len(runs) - done, jobs) if seconds else "unknown"
                state = "failed" if code else "completed"
                console.print(f"{done}/{len(runs)}  {run.folder.name}: {state}; time left: {left}", soft_wrap=True)
            start_next()
    return failed


def train_run(run: Run, environment: dict[str, str], children: Children) -> tuple[int, str]:
    """Train one run; return its exit code and the last line that it wrote to the standard error or output."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ended = children.run(["train", *run.words], env=environment, **streams)
    lines = (ended.stderr.strip() or ended.stdout.strip() or f"exit code {ended.returncode}").splitlines()
    return ended.returncode, lines[-1]


def call(children: Children, command: str, *words: str) -> None:
    """Call another subcommand, which prints for itself. Exits with its code if it fails, with 130 after SIGTERM."""
    sys.stdout.flush()
    code = children.run([command, *get_config_dirs(), *words]).returncode
    if children.stopped:
        raise SystemExit(130)
    if code:
        raise SystemExit(code)


def estimate(seconds: list[float], runs: int, jobs: int) -> str:
    """Estimate how long runs take, from the median of others."""
    return str(timedelta(seconds=round(median(seconds) * -(-runs // jobs))))
