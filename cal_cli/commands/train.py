"""`cal train`: carry out one run in its folder, or print what it needs (`plan=true`).

The same command again continues a run, or finds it complete.
"""

import dataclasses
import math
import re
import time
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors import SafetensorError
from transformers import PrinterCallback, set_seed

from cal_cli.commands.hydra_app import Job, get_job
from cal_cli.data.collator import Collator
from cal_cli.data.noise import describe_changes, drop_images, inject_noise, load_data
from cal_cli.data.sample import NEIGHBOURS, Conversations
from cal_cli.evaluation.evaluator import Scorer
from cal_cli.models.load import ModelSource, check_objective, checkpoint_activations
from cal_cli.models.parts import add_adapters, count_trainable, describe_rounding, freeze_parts, trains_only_projector
from cal_cli.objective import NonFiniteLoss, RuleLoss
from cal_cli.objective.passes import unwrap_adapters
from cal_cli.runtime.config import build, check_types
from cal_cli.runtime.console import make_console, make_table
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json, write_whole
from cal_cli.runtime.processes import count_processes, distribute, is_worker, join
from cal_cli.runtime.runs import LEARNT, clear, find_last_checkpoint, hold, is_completed
from cal_cli.training.arguments import (
    TrainConfig,
    check_combinations,
    count_step_samples,
    divide_step,
    make_training_arguments,
    uses_bf16,
)
from cal_cli.training.callbacks import BadSamples, CheckpointRemover, MetricsWriter, ProgressReporter, StopOnSignal
from cal_cli.training.memory import Plan, plan_memory
from cal_cli.training.record import find_changed_inputs, identify_inputs, read_inputs, save_weights, summarize
from cal_cli.training.reference import load_objective_reference, prepare_scores
from cal_cli.training.run_trainer import RunTrainer, estimate_length


def train(config: DictConfig) -> None:
    """Carry out one run in the job's folder; exit with 130 after Ctrl-C, and with 1 after a non-finite loss."""
    settings = check_types(config, TrainConfig)
    check_combinations(settings)
    job, console = get_job(), make_console()
    if settings.evaluate_every is None and (chosen := job.choices["benchmark"]) != "scenes":
        raise InputError(
            f"benchmark={chosen}: cal train evaluates only with evaluate_every=100 or another number of steps; "
            f"cal eval benchmark={chosen} scores a completed run"
        )
    processes = count_processes(settings.launch, elsewhere=settings.plan)
    if settings.plan:
        print_plan(config, settings, processes * settings.launch.machines, console)
        return
    # the process that was called holds the folder, and those that it starts do not
    held = nullcontext() if is_worker() or settings.launch.machine else hold(job.folder, console.print)
    with held:
        carry_out(config, settings, processes, job, console)


def carry_out(config: DictConfig, settings: TrainConfig, processes: int, job: Job, console: Console) -> None:
    """Carry out a run in its folder, unless it is completed; with several processes, start them and wait."""
    if (
        not settings.force
        and is_completed(job.folder, config)
        and not find_changed_inputs(job.folder, identify_inputs(config, build(config, "data")))
    ):
        console.print(f"{job.folder}: already completed; force=true repeats it")
        return
    objective = build(config, "objective")
    check_objective(build(config, "model").load_config(), "model", objective.rule.contrasts)
    if distribute(settings.launch, processes, job.words, job.folder):
        return
    state = join(settings.launch)
    console.quiet = not state.is_main_process
    trainer, last = prepare(config, settings, objective, job, state, console)
    if last:
        console.print(f"{job.folder}: continuing from {last.name}")
    summary, problem = run(trainer, last, settings, job, console)
    finish(trainer, summary, problem, job.folder, state, console)


def prepare_data(
    config: DictConfig, settings: TrainConfig, objective: RuleLoss, console: Console
) -> tuple[Conversations, Conversations]:
    """Load the data; return them as they are, and with noise and image dropout.

    Raises InputError if the objective contrasts and no sample shows an image, or whatever loading and noise raise.
    """
    clean = load_data(config, console)
    noisy, changed_samples = inject_noise(clean, settings.noise)
    if shortfall := describe_changes(clean.entries, settings.noise, changed_samples):
        console.print(shortfall)
    data = drop_images(noisy, settings.image_dropout, settings.seed)
    shown = sum("image" in entry for entry in data.entries)
    if objective.rule.contrasts and not shown:
        raise InputError(
            f"none of the {len(data)} samples shows an image, so this objective has nothing to contrast: give data "
            "with images, or objective=ce"
        )
    if "rho" in objective.rule.estimates and shown == len(data):
        console.print(NEVER_TEXT_ONLY, soft_wrap=True)
    return clean, data


def prepare(
    config: DictConfig, settings: TrainConfig, objective: RuleLoss, job: Job, state: PartialState, console: Console
) -> tuple[RunTrainer, Path | None]:
    """Build data, model, objective and trainer; also return the checkpoint to continue from."""
    set_seed(settings.seed)  # for whatever is drawn while the model is built, such as adapters
    clean, data = prepare_data(config, settings, objective, console)
    objective, model, processor, rates = prepare_model(config, settings, objective, console)
    step_samples = count_step_samples(settings, state.num_processes)
    if state.is_main_process:
        inputs = identify_inputs(config, clean)
        if changed := find_changed_inputs(job.folder, inputs):
            console.print(f"{job.folder}: {', '.join(changed)} changed since the earlier run; starting again")
        again = settings.force or not settings.resume or changed
        step_samples = (not again and read_inputs(job.folder).get("step_samples")) or step_samples
    (step_samples,) = broadcast_object_list([step_samples])
    arguments = make_training_arguments(settings, job.folder, data, step_samples)
    if state.is_main_process:
        if again:  # only now: a wrong value must not cost an earlier run
            clear(job.folder)
        write_whole(job.folder / "config.yaml", OmegaConf.to_yaml(config))
        write_json(job.folder / "inputs.json", {"fingerprints": inputs, "step_samples": step_samples})
    collate = Collator(processor, settings.max_length, keep_ids=True, leave_out=data.max_bad > 0)
    with suppress(InputError):  # a bad sample, which training reports
        if not trains_only_projector(rates) and collate.find_end(data[0]) is None:
            console.print(UNCLOSED)
    with state.main_process_first():  # the others read what the first has computed
        data = prepare_scores(objective, model, collate, data, settings.batch_size, console)
        last = find_last_checkpoint(job.folder)
    if collate.leave_out:
        collate = dataclasses.replace(collate, spare=find_good_sample(data, collate))
    scorer = None if settings.evaluate_every is None else make_scorer(config, settings, processor)
    bad_samples = BadSamples(job.folder / "bad_samples.jsonl", data.max_bad, partial(console.print))
    if state.is_main_process:
        bad_samples.add(data.bad)
    set_seed(settings.seed)
    metrics = MetricsWriter(job.folder / "metrics.jsonl", objective)
    trainer = RunTrainer(
        rates=rates,
        bad_samples=bad_samples,
        group_batches=settings.group_by_modality_length,
        model=model,
        args=arguments,
        objective=objective,
        train_dataset=data,
        eval_dataset=None if scorer is None else scorer.questions,  # what the Trainer evaluates on; `score` reads it
        score=None if scorer is None else scorer.score,
        data_collator=collate,
        processing_class=processor,
        callbacks=[metrics, CheckpointRemover(settings.keep_checkpoints)],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, last


def prepare_model(
    config: DictConfig, settings: TrainConfig, objective: RuleLoss, console: Console
) -> tuple[RuleLoss, Any, Any, dict[str, float]]:
    """Load the model, freeze parts of it and add adapters; return objective, model, processor and rates by part."""
    model, processor = build(config, "model").load(seed=settings.seed)
    rates = freeze_parts(model, settings.parts, adapted=settings.peft is not None)
    if rounding := describe_rounding(model, rates, settings.learning_rate):
        console.print(rounding)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    objective = load_objective_reference(objective, model, processor)
    if settings.peft is not None:
        model = add_adapters(model, settings.peft, rates)
    counts = count_trainable(unwrap_adapters(model)).items()
    console.print("trained parameters: " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts))
    return objective, model, processor, rates


def find_good_sample(data: Conversations, collate: Collator) -> dict | None:
    """Return the first sample that can be used; None if the first `NEIGHBOURS` cannot."""
    for place in range(min(len(data), NEIGHBOURS)):
        try:
            sample = {key: value for key, value in data[place].items() if key != "bad"}
            collate([sample])
            return sample
        except InputError:
            continue
    return None


def make_scorer(config: DictConfig, settings: TrainConfig, processor: Any) -> Scorer:
    """Make what scores the model in training, on `benchmark`."""
    if "_target_" not in config.benchmark:
        raise InputError(f"evaluate_every: benchmark={get_job().choices['benchmark']} is several: give one of them")
    benchmark = build(config, "benchmark")
    headline = config.benchmark.get("headline") or []
    return Scorer(benchmark, headline, settings.evaluate_limit, processor, settings.batch_size)


def run(
    trainer: RunTrainer, last: Path | None, settings: TrainConfig, job: Job, console: Console
) -> tuple[dict[str, Any], Exception | None]:
    """Train and save the weights; return the summary, and the problem if the run failed."""
    title = f"{settings.name}/{job.folder.name}"
    progress = ProgressReporter(title if len(title) <= 48 else f"{title[:47]}…", console)
    interrupt = StopOnSignal()
    trainer.add_callback(progress)
    trainer.add_callback(interrupt)
    describe = partial(summarize, settings, trainer, objective=str(job.choices["objective"]), command=job.command)
    start = time.perf_counter()
    try:
        with interrupt:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        finished = trainer.state.global_step >= trainer.state.max_steps
        status = "interrupted" if interrupt.stopped and not finished else "completed"
        summary = describe(status, time.perf_counter() - start)  # before adapters are merged
        if status == "completed":
            save_weights(trainer, trainer.processing_class, job.folder)
        return summary, None
    except Exception as error:  # whatever failed, the summary says so and the last checkpoint stays
        return describe("failed", time.perf_counter() - start), error
    finally:
        progress.close()


def finish(
    trainer: RunTrainer,
    summary: dict[str, Any],
    problem: Exception | None,
    folder: Path,
    state: PartialState,
    console: Console,
) -> None:
    """Write the summary and report how the run ended; exit with 130 if it was interrupted, with 1 if it failed."""
    if state.is_main_process or problem:
        if trainer.objective.state:
            write_json(folder / LEARNT, trainer.objective.state, indent=None)
        # if a failed run cannot even write this file, its message on the terminal must do
        with suppress(OSError) if problem else nullcontext():
            write_json(folder / "summary.json", summary)
    if "DataLoader worker" in str(problem):  # the error of another process, with its traceback
        kind, _, text = str(problem).strip().rpartition("\n")[2].partition(": ")
        problem = InputError(text) if kind.endswith(("InputError", "UnusableSamples")) else problem
    if isinstance(problem, InputError) and str(problem).startswith("sample "):
        data = trainer.train_dataset
        raise InputError(
            f"{problem}; data.max_bad_fraction leaves out {data.max_bad} of {len(data)} samples: give a larger one, or "
            "the good samples that cal data-check writes"
        ) from problem
    first = trainer.state.global_step == 0
    if first and isinstance(problem, ValueError) and not isinstance(problem, InputError):  # what model or loss refuse
        raise InputError(f"{type(trainer.model).__name__}: {str(problem).splitlines()[0]}") from problem
    full_disk = isinstance(problem, RuntimeError) and re.search("PytorchStreamWriter|inline_container", str(problem))
    if problem and not full_disk and not isinstance(problem, NonFiniteLoss | OSError | SafetensorError):
        raise problem
    if problem:
        console.quiet = False  # whichever process failed reports
        last = find_last_checkpoint(folder)
        cause = (
            f"a file could not be read or written ({problem}): is the disk full? The same command continues the run."
        )
        if isinstance(problem, NonFiniteLoss):
            cause = (
                f"the loss is {problem.loss} after step {problem.step}, from the samples {', '.join(problem.samples)}: "
                "check their images and the learning rate."
            )
        console.print(
            f"{folder}: {cause} "
            + (f"The last good checkpoint is {last}." if last else "No checkpoint has been saved.")
        )
        raise SystemExit(1)
    if summary["status"] == "interrupted":
        console.print(
            f"{folder}: interrupted and saved after step {trainer.state.global_step} of {trainer.state.max_steps}. "
            f"The same command continues it:\n  {summary['command']}"
        )
        state.wait_for_everyone()  # the end of the first process ends the others
        raise SystemExit(130)
    values = {"loss": summary["final_loss"]} | summary.get("estimates", {})
    described = ", ".join(f"{name} {value:.4f}" for name, value in values.items())
    console.print(f"{folder}: completed, {trainer.state.global_step} steps, {described}")


ROWS = {
    "gathered": "gathered from other devices",
    "unpacked": "a four-bit weight, unpacked",
    "on_cpu": "in the CPU's memory instead",
}
UNCLOSED = (
    "the chat template closes answers without an end token, so the model will not learn to stop: give "
    "model.template=v1, or a .jinja file that closes them"
)
NEVER_TEXT_ONLY = (
    "every sample shows an image, so nothing teaches the model p(text), which this objective compares with, and it may "
    "take all texts for right: image_dropout=0.1 trains on a tenth of the samples without their images"
)
ASSUMED_LENGTH = 2048  # tokens, if neither max_length nor the data give a length


def print_plan(config: DictConfig, settings: TrainConfig, devices: int, console: Console) -> None:
    """Print the memory and the number of steps of a run; the data are read if they are on this machine."""
    step_samples = count_step_samples(settings, devices)
    batch_size, batches = divide_step(step_samples, devices, settings.batch_size)
    source: ModelSource = build(config, "model")
    samples, tokens = None, settings.max_length or ASSUMED_LENGTH
    node: Any = OmegaConf.to_container(config.data)
    files = [source["path"] for source in node.get("sources", [node]) if "path" in source]
    if all(Path(path).exists() for path in files):
        data = build(config, "data")
        samples = len(data)
        longest = sorted(range(samples), key=lambda index: -estimate_length(data.entries[index]))
        collate = Collator(source.load_processor(), settings.max_length, leave_out=True)
        tokens = collate([data[index] for index in longest[:batch_size]])["input_ids"].shape[1]
    plan = plan_memory(
        source.load_config(),
        source.torch_dtype,
        settings.parts,
        batch_size,
        tokens,
        settings.gradient_checkpointing,
        batches,
        uses_bf16(settings),
        "cuda" if torch.cuda.is_available() else "cpu",
        devices,
        settings.launch.shard,
        settings.launch.offload,
        None if settings.peft is None else OmegaConf.to_object(settings.peft),  # type: ignore[arg-type]
    )
    print_memory(plan, console)
    if samples is None:
        console.print(f"samples per step: {step_samples}; the data are not on this machine, so the steps are unknown")
        return
    epochs = settings.epochs
    steps = settings.max_steps if settings.max_steps > 0 else math.ceil(samples / step_samples) * epochs
    console.print(f"samples per step: {step_samples}; steps: {steps:,.0f}; samples: {samples:,} x {epochs:g} epochs")


def print_memory(plan: Plan, console: Console) -> None:
    """Print the memory of one device, and the parameters of the model."""
    table = make_table("", "GB", title="memory of one device")
    table.columns[1].justify = "right"
    counts = ("parameters", "trainable", "tokens")
    sizes = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan) if field.name not in counts}
    for name in sorted(sizes, key=lambda name: (name == "on_cpu", name == "peak")):
        if sizes[name] or name not in ROWS:
            table.add_row(ROWS.get(name, name), f"{sizes[name] / 1e9:,.2f}")
    console.print(table)
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in plan.parameters.items() if count)
    console.print(f"parameters: {total:,} ({parts}); trainable: {plan.trainable:,}")
    console.print(f"activations: of samples of {plan.tokens:,} tokens")
