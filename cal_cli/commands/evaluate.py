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
from rich.table import Table

from cal_cli.commands.hydra_app import get_job
from cal_cli.evaluation.benchmark import Benchmark
from cal_cli.evaluation.evaluator import Evaluator
from cal_cli.evaluation.results import load_results, read_predictions, score_answers
from cal_cli.runtime.config import build, check_types, limited
from cal_cli.runtime.console import make_console, make_table
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.processes import LaunchConfig, count_processes, get_process_state, is_worker, run_workers
from cal_cli.runtime.provenance import fingerprint
from cal_cli.runtime.runs import find_checkpoints, get_result_folder, get_run_name
from cal_cli.toy.model import BASE


@dataclass(kw_only=True)
class EvalConfig:
    """The types and ranges of `conf/eval.yaml`, which documents each key."""

    benchmark: Any
    checkpoint: str | None
    batch_size: int = limited(1)
    limit: int | None = limited(1)
    dtype: str | None
    predictions: str | None
    launch: LaunchConfig
    force: bool


def evaluate(config: DictConfig) -> None:
    """Evaluate every checkpoint that `checkpoint=` names on every benchmark that `benchmark=` names; print tables."""
    settings = check_types(config, EvalConfig)
    if settings.launch.shard is not None:
        raise InputError("launch: cal eval distributes questions and does not shard models: give launch=single or ddp")
    processes = count_processes(settings.launch)
    several = processes * settings.launch.machines > 1
    if settings.predictions is not None:
        if settings.checkpoint is not None or several:
            raise InputError("predictions are scored as they are, by one process: leave checkpoint and launch out")
        if not Path(settings.predictions).is_file():
            raise InputError(f"predictions={settings.predictions}: there is no such file")
        subjects = [Path(settings.predictions)]
    else:
        subjects = find_checkpoints(settings.checkpoint, {"tiny": BASE})
    job = get_job()
    if several and not is_worker():
        if code := run_workers([*job.words, f"hydra.run.dir='{job.folder}'"], settings.launch, processes, job.folder):
            raise SystemExit(code)
        return
    state = get_process_state()
    console = make_console(quiet=not state.is_main_process)
    evaluator = Evaluator(state, console, job.command, settings.batch_size, settings.dtype, settings.force)
    for name, node in list_benchmarks(config):
        console.print(evaluate_benchmark(name, node, subjects, settings, evaluator))
    state.wait_for_everyone()  # the end of the first process ends the others


def list_benchmarks(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Yield the benchmarks that `benchmark=` names (one, a list, or a group such as `paper`), each with its config."""
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


def evaluate_benchmark(
    name: str, node: DictConfig, subjects: list[Path], settings: EvalConfig, evaluator: Evaluator
) -> Table:
    """Evaluate checkpoints, or a file of predictions, on one benchmark; what has results is not repeated."""
    table = make_table("checkpoint", "metric", "value", "95 % interval", title=name)
    table.columns[0].overflow = "fold"
    benchmark: Benchmark | None = None
    identity: dict[str, Any] = {"benchmark": OmegaConf.to_container(node), "limit": settings.limit}
    results: dict[str, Any] = {}
    for subject in subjects:
        named = subject if settings.predictions is None else subject.with_suffix("")
        benchmark = benchmark or build_benchmark(node, settings, evaluator)
        identity["data"] = benchmark.source
        identity |= {"checkpoint": str(subject), "weights": fingerprint(subject), "dtype": settings.dtype}
        folder = get_result_folder(named, "eval", name if settings.limit is None else f"{name}_{settings.limit}")
        known, differing = load_results(folder, identity)
        if known and not settings.force and not differing:
            evaluator.console.print(f"{folder}: already evaluated; force=true repeats it")
            results = known
        else:
            if known and not settings.force:
                evaluator.console.print(
                    f"{folder}: evaluating again; the results there differ in {', '.join(differing)}"
                )
            if settings.predictions is None:
                results = evaluator.evaluate(subject, name, benchmark, dict(identity), folder)
            else:
                texts = read_predictions(subject, benchmark.questions, beyond=settings.limit is not None)
                facts: dict[str, Any] = {
                    "checkpoint": None,
                    "predictions": str(subject),
                    "prompt": None,
                    "generation": None,
                }
                facts |= {"settings": dict(identity), "command": evaluator.command}
                results = score_answers(name, benchmark, texts, facts, folder)
        if results.get("without_answers"):
            evaluator.console.print(describe_unscored(folder, results))
        label = get_run_name(named)
        for metric, found in results["metrics"].items():
            interval = "-" if found["ci95"] is None else "{:.3f} to {:.3f}".format(*found["ci95"])
            table.add_row(label, metric.replace("_", " "), f"{found['value']:.3f}", interval)
            label = ""
        table.add_section()
    table.caption = f"{results['n']} questions of the split {results['split']}; intervals over their pictures"
    return table


def describe_unscored(folder: Path, results: dict[str, Any]) -> str:
    """Describe what became of the questions without right answers."""
    unscored = results["without_answers"]
    if results["n"]:
        return f"{folder}: {unscored} of {unscored + results['n']} questions have no right answers and are not scored"
    return (
        f"{folder}: the split {results['split']} has no right answers, so nothing is scored; predictions.jsonl has the "
        f"model's {unscored} answers for submission"
    )


def build_benchmark(node: DictConfig, settings: EvalConfig, evaluator: Evaluator) -> Benchmark:
    """Build a benchmark and check what its metric needs."""
    with evaluator.state.main_process_first():  # the others find its downloads in the cache
        benchmark: Benchmark = build(OmegaConf.create({"benchmark": node}), "benchmark")
    benchmark.questions = benchmark.questions[: settings.limit]
    benchmark.metric.check_requirements()
    return benchmark
