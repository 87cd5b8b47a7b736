"""`cal eval`: answers of a checkpoint, or of every run of a folder, to a benchmark's questions, and their scores."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from rich.table import Column, Table

from cal_cli.config import build, typed
from cal_cli.data.collator import to_messages
from cal_cli.errors import InputError
from cal_cli.evaluation.answer_log import AnswerLog
from cal_cli.evaluation.benchmark import IMAGE, Benchmark
from cal_cli.evaluation.dataset import sha256_of
from cal_cli.evaluation.generation import batches_of, generate_answers, lengths_of, turns
from cal_cli.evaluation.lmms_eval import evaluate_by_lmms_eval
from cal_cli.evaluation.predictions import read_predictions
from cal_cli.evaluation.progress import progress
from cal_cli.evaluation.questions import Question
from cal_cli.evaluation.results import read_results, save_results, score
from cal_cli.files import device_name, versions
from cal_cli.models.load import load_for_answers
from cal_cli.runs import find_checkpoints, result_folder
from cal_cli.training.launch import LaunchConfig, is_worker, process_state, run_workers, wanted_processes

ENGINES = ("cal", "lmms_eval")


@dataclass
class EvalConfig:
    """The types of `conf/eval.yaml`; what each key means stands there."""

    benchmark: Any
    checkpoint: str | None
    batch_size: int
    limit: int | None
    dtype: str | None
    engine: str
    predictions: str | None
    launch: LaunchConfig
    force: bool


@dataclass
class Evaluation:
    """What all benchmarks and checkpoints of a command share; of models the last that was loaded is kept."""

    settings: EvalConfig
    state: PartialState
    console: Console
    loaded: dict[Path, tuple[Any, Any]] = field(default_factory=dict)

    def load(self, checkpoint: Path) -> tuple[Any, Any]:
        """A checkpoint's model and processor."""
        if checkpoint not in self.loaded:
            self.loaded.clear()  # before, not after: two might not fit
            self.loaded[checkpoint] = load_for_answers(str(checkpoint), self.settings.dtype, self.state.device)
        return self.loaded[checkpoint]


def evaluate(config: DictConfig) -> None:
    """Evaluate every checkpoint that `checkpoint=` means on every benchmark that `benchmark=` means; print a table.

    Raises:
        InputError: a wrong value, or no checkpoint or data are found.
    """
    settings = typed(config, EvalConfig)
    for name in ("batch_size", "limit"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise InputError(f"{name}={value}: must be at least 1")
    if settings.engine not in ENGINES:
        raise InputError(f"engine={settings.engine}: allowed are {' and '.join(ENGINES)}")
    if settings.launch.shard is not None:
        raise InputError("launch: cal eval divides questions, not models: give launch=single or launch=ddp")
    processes = wanted_processes(settings.launch)
    if settings.predictions is None:
        checkpoints = find_checkpoints(settings.checkpoint)
    else:
        if settings.checkpoint is not None or settings.engine != "cal" or processes * settings.launch.machines > 1:
            raise InputError(
                "predictions are scored as they are, by one process: leave checkpoint, engine and launch out"
            )
        checkpoints = [Path(settings.predictions)]
        if not checkpoints[0].is_file():
            raise InputError(f"predictions={settings.predictions}: there is no such file")
    if processes * settings.launch.machines > 1 and not is_worker() and settings.engine == "cal":
        run_workers("eval", settings.launch, processes, Path(HydraConfig.get().runtime.output_dir))
        return
    state = process_state()
    console = Console(soft_wrap=True, highlight=False, quiet=not state.is_main_process)
    evaluation = Evaluation(settings, state, console)
    for name, node in benchmarks_of(config):
        evaluate_benchmark(name, node, checkpoints, evaluation)
    state.wait_for_everyone()  # the first process that ends ends the others


def benchmarks_of(config: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """The benchmarks that `benchmark=` names, one, a list, or a group such as `paper`, each with its config.

    Raises:
        InputError: one of several does not have a key that is given for all.
    """
    words = HydraConfig.get().overrides.task
    # Hydra keeps what it chose of a group only where that is one
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
        except (HydraException, OmegaConfBaseException) as error:  # a key that only others of them have
            raise InputError(f"benchmark={name}: {str(error).splitlines()[0]}") from error
        OmegaConf.resolve(node)
        if "benchmarks" in node:
            waiting = [*node.benchmarks, *waiting]
        else:
            yield name, node


def evaluate_benchmark(name: str, node: DictConfig, checkpoints: list[Path], evaluation: Evaluation) -> None:
    """Evaluate checkpoints on one benchmark and print a table; what has results is not repeated."""
    settings, console = evaluation.settings, evaluation.console
    table = Table(Column("checkpoint", overflow="fold"), "metric", "value", "95 % interval", title=name)
    benchmark: Benchmark | None = None
    told = {"benchmark": OmegaConf.to_container(node), "limit": settings.limit, "engine": settings.engine}
    if settings.predictions is not None:
        told["predictions"] = sha256_of(checkpoints)
    results: dict[str, Any] = {}
    for checkpoint in checkpoints:
        subject = checkpoint if settings.predictions is None else checkpoint.with_suffix("")
        folder = result_folder(subject, "eval", name if settings.limit is None else f"{name}_{settings.limit}")
        known = None if settings.force else read_results(folder, told)
        if known:
            console.print(f"{folder}: already evaluated; force=true repeats it")
            results = known
        elif settings.engine == "lmms_eval":
            results = evaluate_by_lmms_eval(checkpoint, name, node, settings.limit)
            save_results(folder, results | {"settings": told})
        else:
            if benchmark is None:
                with evaluation.state.main_process_first():  # the others find in the cache what it has fetched
                    benchmark = build(OmegaConf.create({"benchmark": node}), "benchmark")
                benchmark.questions = benchmark.questions[: settings.limit]
                benchmark.metric.ready()
            if settings.predictions is None:
                results = evaluate_checkpoint(checkpoint, name, benchmark, told, folder, evaluation)
            else:
                results = evaluate_predictions(checkpoint, name, benchmark, told, folder)
        label = label_of(subject)
        for metric, found in results["metrics"].items():
            interval = "-" if found["ci95"] is None else "{:.3f} to {:.3f}".format(*found["ci95"])
            table.add_row(label, metric.replace("_", " "), f"{found['value']:.3f}", interval)
            label = ""
        table.add_section()
    intervals = "by lmms-eval's standard errors" if settings.engine == "lmms_eval" else "over their pictures"
    table.caption = f"{results['n']} questions of the split {results['split']}; intervals {intervals}"
    console.print(table)


def label_of(checkpoint: Path) -> str:
    """How a table calls a checkpoint: by its run, where it has one."""
    return checkpoint.parent.name if checkpoint.name == "checkpoint" else checkpoint.name


def prompt_of(question: Question, processor: Any) -> str:
    """A question as the model reads it, each image as its one token."""
    images: list[Any] = [None] * question.question.count(IMAGE)
    return processor.apply_chat_template(to_messages(turns(question), images), add_generation_prompt=True)


def evaluate_checkpoint(
    checkpoint: Path,
    name: str,
    benchmark: Benchmark,
    told: dict[str, Any],
    folder: Path,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Have a checkpoint answer, and score what it says; see `score`."""
    settings, state, console = evaluation.settings, evaluation.state, evaluation.console
    model, processor = evaluation.load(checkpoint)
    asked = benchmark.questions
    prompts = [prompt_of(question, processor) for question in asked]
    prompt_hash = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    identity = told | {
        "checkpoint": str(checkpoint),
        "prompts": prompt_hash,
        "data": benchmark.source,
        "dtype": str(model.dtype).removeprefix("torch."),
        "versions": versions(),
    }
    log = AnswerLog(folder, identity, state.process_index)
    if state.is_main_process:
        differing = log.begin(anew=settings.force)
        if differing:
            console.print(f"{folder}: starting anew; what was answered there before differs in {', '.join(differing)}")
    state.wait_for_everyone()
    answers = log.read()
    state.wait_for_everyone()  # nobody writes before all have read
    groups = batches_of(asked, lengths_of(asked, processor), settings.batch_size)
    missing = [[batch for batch in group if any(asked[place].id not in answers for place in batch)] for group in groups]
    mine = [group for group in missing if group][state.process_index :: state.num_processes]
    if answers:
        console.print(f"{folder}: continuing after {len(answers)} of {len(asked)} questions")
    new: dict[str, str] = {}
    total = sum(len(batch) for group in mine for batch in group)
    with progress(f"{label_of(checkpoint)}, {name}", total, console) as advance:

        def keep(found: dict[int, str]) -> None:
            by_id = {asked[place].id: text for place, text in found.items()}
            log.add(by_id)
            new.update(by_id)
            advance(len(found))

        generate_answers(model, processor, asked, settings.batch_size, benchmark.max_new_tokens, mine, keep)
    shares = gather_object([new])
    assert len(set().union(*shares)) == sum(map(len, shares))  # no question was answered by two processes
    for found in shares:
        answers |= found
    texts = [answers[question.id] for question in asked]
    if not state.is_main_process:
        state.wait_for_everyone()
        return read_results(folder, told) or {}
    facts = {
        "checkpoint": str(checkpoint),
        "prompt": prompts[0],
        "prompts_sha256": prompt_hash,
        "generation": {
            "do_sample": False,
            "max_new_tokens": benchmark.max_new_tokens,
            "batch_size": settings.batch_size,
            "dtype": identity["dtype"],
        },
        "settings": told,
        "device": device_name(),
        "processes": state.num_processes,
    }
    results = score(name, benchmark, texts, facts, folder)
    log.close()
    state.wait_for_everyone()
    return results


def evaluate_predictions(
    path: Path, name: str, benchmark: Benchmark, told: dict[str, Any], folder: Path
) -> dict[str, Any]:
    """Score answers that were given elsewhere; see `score`."""
    texts = read_predictions(path, benchmark.questions, beyond=told["limit"] is not None)
    # what was asked there, and how, is not known
    facts = {"checkpoint": None, "predictions": str(path), "prompt": None, "generation": None, "settings": told}
    return score(name, benchmark, texts, facts, folder)
