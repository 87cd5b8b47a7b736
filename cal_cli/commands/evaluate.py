"""`cal eval`: score a checkpoint, or every run in a folder, on one benchmark or several."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.table import Column, Table

from cal_cli.commands.hydra_app import get_job
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.checkpoint import evaluate_checkpoint
from cal_cli.evaluation.lmms_eval import evaluate_with_lmms_eval
from cal_cli.evaluation.predictions import read_predictions
from cal_cli.evaluation.results import load_results, save_results, score_answers
from cal_cli.models.load import load_checkpoint
from cal_cli.runtime.config import build, check_types
from cal_cli.runtime.console import make_console
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import hash_files
from cal_cli.runtime.processes import LaunchConfig, count_processes, get_process_state, is_worker, run_workers
from cal_cli.runtime.runs import find_checkpoints, get_result_folder, get_run_name
from cal_cli.toy.model import BASE

ENGINES = ("cal", "lmms_eval")


@dataclass
class EvalConfig:
    """The types of `conf/eval.yaml`, which documents each key."""

    benchmark: Any
    checkpoint: str | None
    batch_size: int
    limit: int | None
    dtype: str | None
    engine: str
    predictions: str | None
    launch: LaunchConfig
    force: bool


def evaluate(config: DictConfig) -> None:
    """Evaluate every checkpoint that `checkpoint=` names on every benchmark that `benchmark=` names; print tables.

    Raises:
        InputError: a wrong value, or no checkpoint or data are found.
    """
    settings = check_types(config, EvalConfig)
    for name in ("batch_size", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
    if settings.engine not in ENGINES:
        raise InputError(f"engine={settings.engine}: allowed are {' and '.join(ENGINES)}")
    if settings.launch.shard is not None:
        raise InputError("launch: cal eval distributes questions and does not shard models: give launch=single or ddp")
    processes = count_processes(settings.launch)
    several = processes * settings.launch.machines > 1
    if settings.predictions is not None:
        if settings.checkpoint is not None or settings.engine != "cal" or several:
            raise InputError(
                "predictions are scored as they are, by one process: leave checkpoint, engine and launch out"
            )
        if not Path(settings.predictions).is_file():
            raise InputError(f"predictions={settings.predictions}: there is no such file")
        subjects = [Path(settings.predictions)]
    else:
        subjects = find_checkpoints(settings.checkpoint, {"tiny": BASE})
    job = get_job()
    if several and not is_worker() and settings.engine == "cal":
        run_workers([*job.words, f"hydra.run.dir='{job.folder}'"], settings.launch, processes, job.folder)
        return
    evaluator = Evaluator(settings, job.command)
    for name, node in list_benchmarks(config):
        evaluator.evaluate(name, node, subjects)
    evaluator.state.wait_for_everyone()  # the end of the first process ends the others


def list_benchmarks(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the benchmarks that `benchmark=` names (one, a list, or a group such as `paper`), each with its config.

    Raises:
        InputError: one of several does not have a key that is given for all.
    """
    words = HydraConfig.get().overrides.task
    # Hydra keeps the choice of a group only if it is a single one
    given = [word for word in words if word.startswith("benchmark=")]
    chosen = OverridesParser.create().parse_override(given[-1]).value() if given else None
    names = list(chosen) if isinstance(chosen, list) else [HydraConfig.get().runtime.choices["benchmark"]]
    if len(names) == 1 and "benchmarks" not in config.benchmark:
        yield names[0], config.benchmark
        return
    others = [word for word in words if word not in given]
    waiting = names
    while waiting:
        name, *waiting = waiting
        try:
            node = compose("eval", overrides=[*others, f"benchmark={name}"]).benchmark
        except (HydraException, OmegaConfBaseException) as error:  # a key that only other benchmarks have
            raise InputError(f"benchmark={name}: {str(error).splitlines()[0]}") from error
        OmegaConf.resolve(node)
        if "benchmarks" in node:
            waiting = [*node.benchmarks, *waiting]
        else:
            yield name, node


class Evaluator:
    """Evaluates subjects (checkpoints, or a file of predictions) on benchmarks; keeps the last model that it loaded."""

    def __init__(self, settings: EvalConfig, command: str) -> None:
        self.settings, self.command = settings, command
        self.state = get_process_state()
        self.console = make_console(quiet=not self.state.is_main_process)
        self.loaded: tuple[Path, Any, Any] | None = None

    def evaluate(self, name: str, node: DictConfig, subjects: list[Path]) -> None:
        """Evaluate all subjects on one benchmark and print a table; what has results is not repeated."""
        settings, console = self.settings, self.console
        table = Table(Column("checkpoint", overflow="fold"), "metric", "value", "95 % interval", title=name)
        benchmark: Benchmark | None = None
        identity = {"benchmark": OmegaConf.to_container(node), "limit": settings.limit, "engine": settings.engine}
        if settings.predictions is not None:
            identity["predictions"] = hash_files(subjects)
        results: dict[str, Any] = {}
        for subject in subjects:
            named = subject if settings.predictions is None else subject.with_suffix("")
            folder = get_result_folder(named, "eval", name if settings.limit is None else f"{name}_{settings.limit}")
            known = None if settings.force else load_results(folder, identity)
            if known:
                console.print(f"{folder}: already evaluated; force=true repeats it")
                results = known
            elif settings.engine == "lmms_eval":
                results = evaluate_with_lmms_eval(subject, name, node, settings.limit, self.command)
                save_results(folder, results | {"settings": identity})
            else:
                benchmark = benchmark or self.build_benchmark(node)
                results = self.score(subject, name, benchmark, identity, folder)
            label = get_run_name(named)
            for metric, found in results["metrics"].items():
                interval = "-" if found["ci95"] is None else "{:.3f} to {:.3f}".format(*found["ci95"])
                table.add_row(label, metric.replace("_", " "), f"{found['value']:.3f}", interval)
                label = ""
            table.add_section()
        origin = "from lmms-eval's standard errors" if settings.engine == "lmms_eval" else "over their pictures"
        table.caption = f"{results['n']} questions of the split {results['split']}; intervals {origin}"
        console.print(table)

    def build_benchmark(self, node: DictConfig) -> Benchmark:
        """Build a benchmark and check what its metric needs."""
        with self.state.main_process_first():  # the others find its downloads in the cache
            benchmark: Benchmark = build(OmegaConf.create({"benchmark": node}), "benchmark")
        benchmark.questions = benchmark.questions[: self.settings.limit]
        benchmark.metric.check_requirements()
        return benchmark

    def score(
        self, subject: Path, name: str, benchmark: Benchmark, identity: dict[str, Any], folder: Path
    ) -> dict[str, Any]:
        """Score a checkpoint, or given predictions, and return the contents of `results.json`."""
        settings = self.settings
        if settings.predictions is not None:
            texts = read_predictions(subject, benchmark.questions, beyond=settings.limit is not None)
            # prompt and generation of the other engine are unknown
            facts = {"checkpoint": None, "predictions": str(subject), "prompt": None, "generation": None}
            return score_answers(
                name, benchmark, texts, facts | {"settings": identity, "command": self.command}, folder
            )
        if self.loaded is None or self.loaded[0] != subject:
            self.loaded = None  # frees the memory first: two models might not fit
            self.loaded = (subject, *load_checkpoint(str(subject), settings.dtype, self.state.device))
        return evaluate_checkpoint(
            self.loaded[1],
            self.loaded[2],
            checkpoint=subject,
            name=name,
            benchmark=benchmark,
            settings=identity,
            folder=folder,
            batch_size=settings.batch_size,
            state=self.state,
            console=self.console,
            command=self.command,
            anew=settings.force,
        )
