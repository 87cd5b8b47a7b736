"""`cal eval`: score a checkpoint, or every run in a folder, on one benchmark or several."""

from collections.abc import Collection, Iterator, Sequence
from contextlib import nullcontext
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
from cal_cli.runtime import runs
from cal_cli.runtime.config import build, check_types, limited, update_target
from cal_cli.runtime.console import make_console, make_table
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import fingerprint
from cal_cli.runtime.processes import LaunchConfig, count_processes, distribute, get_process_state
from cal_cli.statistics.seeds import format_interval


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
    max_bad_fraction: float = limited(0, below=1)
    print_table: bool
    force: bool


def evaluate(config: DictConfig) -> None:
    """Evaluate every checkpoint that `checkpoint=` names on every benchmark that `benchmark=` names; print tables."""
    settings = check_types(config, EvalConfig)
    if settings.launch.shard is not None:
        raise InputError("launch: cal eval distributes questions and does not shard models: give launch=single or ddp")
    processes = count_processes(settings.launch)
    if settings.predictions is not None:
        if settings.checkpoint is not None or processes * settings.launch.machines > 1:
            raise InputError("predictions are scored as they are, by one process: leave checkpoint and launch out")
        if not Path(settings.predictions).is_file():
            raise InputError(f"predictions={settings.predictions}: there is no such file")
        subjects = [Path(settings.predictions)]
    else:
        subjects = runs.find_checkpoints(settings.checkpoint)
    job = get_job()
    if distribute(settings.launch, processes, job.words, job.folder):
        return
    state = get_process_state()
    console = make_console(quiet=not state.is_main_process)
    options = (settings.batch_size, settings.dtype, settings.force, settings.max_bad_fraction)
    evaluator = Evaluator(state, console, job.command, *options)
    for name, node in list_benchmarks(config):
        table = evaluate_benchmark(name, node, subjects, settings, evaluator)
        if settings.print_table:
            console.print(table)
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
    """Evaluate checkpoints, or a file of predictions, on one benchmark; what has results is not repeated.

    Runs in one folder are evaluated after the checkpoints that they started from, if some share one.
    """
    folder_name = name if settings.limit is None else f"{name}_{settings.limit}"
    typed = {word.partition("=")[0].removeprefix("benchmark.") for word in HydraConfig.get().overrides.task}
    nodes = [adapt_benchmark(node, subject, typed) for subject in subjects]
    places = [
        (runs.get_run_name(subject), subject, own, runs.get_result_folder(subject, "eval", folder_name))
        for subject, own in zip(
            subjects if settings.predictions is None else [subjects[0].with_suffix("")], nodes, strict=True
        )
    ]
    if settings.checkpoint is not None and all(own == nodes[0] for own in nodes):
        base = Path(settings.checkpoint) / runs.BEFORE_TRAINING
        places[:0] = [
            ("before training", path, nodes[0], base / runs.name_start(start) / "eval" / folder_name)
            for start, path in find_starts(subjects).items()
        ]
    built: dict[str, Benchmark] = {}
    by_label = {}
    for label, subject, own, folder in places:
        subject = subject if settings.predictions is None else subjects[0]
        key = OmegaConf.to_yaml(own)
        built[key] = built.get(key) or build_benchmark(own, settings, evaluator)
        results = evaluate_subject(name, subject, own, built[key], settings, folder, evaluator)
        if results.get("without_answers"):
            evaluator.console.print(describe_unscored(folder, results))
        by_label[f"{label} ({subject.parent.parent})" if label in by_label else label] = results
    return tabulate_results(name, by_label)


def evaluate_subject(
    name: str,
    subject: Path,
    node: DictConfig,
    benchmark: Benchmark,
    settings: EvalConfig,
    folder: Path,
    evaluator: Evaluator,
) -> dict[str, Any]:
    """Evaluate a checkpoint, or a file of predictions, unless `folder` has results that are still valid."""
    identity = {"benchmark": OmegaConf.to_container(node), "limit": settings.limit, "data": benchmark.source}
    identity |= {"checkpoint": str(subject), "weights": fingerprint(subject), "dtype": settings.dtype}
    console, state = evaluator.console, evaluator.state
    with runs.hold(folder, console.print) if state.is_main_process else nullcontext():
        state.wait_for_everyone()  # until another command that evaluates the same is done
        known, differing = load_results(folder, identity)
        if known and not settings.force:
            if not differing:
                console.print(f"{folder}: already evaluated; force=true repeats it")
                return known
            console.print(f"{folder}: evaluating again; the results there differ in {', '.join(differing)}")
        if settings.predictions is None:
            return evaluator.evaluate(subject, name, benchmark, identity, folder)
    texts = read_predictions(subject, benchmark.questions, beyond=settings.limit is not None)
    facts = {"checkpoint": None, "predictions": str(subject), "prompt": None, "generation": None}
    return score_answers(name, benchmark, texts, facts | {"settings": identity, "command": evaluator.command}, folder)


def adapt_benchmark(node: DictConfig, checkpoint: Path, typed: Collection[str]) -> DictConfig:
    """Return a benchmark's config with the values that the run of a checkpoint has for it, except for typed keys."""
    own = runs.read_config(checkpoint.parent).get("benchmark") or {} if checkpoint.name == "checkpoint" else {}
    if update_target(own.get("_target_", "none.")) != node.get("_target_"):
        return node
    kept = {key: own[key] for key in own if key in node and key not in {*typed, "_target_", "version"}}
    return OmegaConf.merge(node, kept)  # type: ignore[return-value]


def find_starts(subjects: Sequence[Path]) -> dict[str, Path]:
    """Return the checkpoints from which runs started, by name; none if one is not known, or no two runs share one."""
    configs = [runs.read_config(subject.parent) if subject.name == "checkpoint" else {} for subject in subjects]
    names = [runs.find_start(config) for config in configs]
    paths = {name: runs.TINY if name == "tiny" else Path(name) for name in names if name is not None}
    known = None not in names and all((path / "config.json").is_file() for path in paths.values())
    return paths if known and len(paths) < len(subjects) else {}


def tabulate_results(name: str, by_label: dict[str, dict[str, Any]]) -> Table:
    """Tabulate the values of one checkpoint, or of several a line each with the benchmark's headline metrics."""
    first = next(iter(by_label.values()))
    if len(by_label) == 1:
        table = make_table("checkpoint", "metric", "value", "95 % interval", title=name)
        for number, (metric, value) in enumerate(first["metrics"].items()):
            interval = "{:.3f} to {:.3f}".format(*value["ci95"]) if value["ci95"] else "-"
            label = "" if number else next(iter(by_label))
            shown = "-" if value["value"] is None else f"{value['value']:.3f}"
            table.add_row(label, metric.replace("_", " "), shown, interval)
    else:
        metrics = first["settings"]["benchmark"].get("headline") or list(first["metrics"])[:1]
        table = make_table("checkpoint", *(metric.replace("_", " ") for metric in metrics), title=name)
        for label, results in by_label.items():
            values = [results["metrics"].get(metric) for metric in metrics]
            table.add_row(label, *(format_interval(value) for value in values))
    table.caption = f"{first['n']} questions of the split {first['split']}; intervals over their images"
    table.caption += "; each results.json has the finer values" if len(by_label) > 1 else ""
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
    hidden = sum(question.image_name is None for question in benchmark.questions)
    if 0 < hidden < len(benchmark.questions):
        evaluator.console.print(f"{hidden} of {len(benchmark.questions)} questions have no image: they are text only")
    benchmark.metric.check_requirements()
    return benchmark
