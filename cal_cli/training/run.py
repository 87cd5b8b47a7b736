"""`cal train`: one run folder from a config; the same command again continues it or finds it complete."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors import SafetensorError
from transformers import PrinterCallback, TrainingArguments, set_seed
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from cal_cli.config import build, command_line, typed
from cal_cli.data.collator import Collator
from cal_cli.data.conversations import Conversations
from cal_cli.data.noise import NoiseConfig, swap_conversations
from cal_cli.errors import InputError
from cal_cli.files import device_name, git_commit, versions, write_whole
from cal_cli.models.load import checkpoint_activations
from cal_cli.models.pretrained import processor_of
from cal_cli.objective import NonFiniteLoss
from cal_cli.runs import OPERATIONAL, read_config, summary_of
from cal_cli.training.adapters import AdapterConfig, with_adapters
from cal_cli.training.bad_samples import BadSamples, TooManyBadSamples
from cal_cli.training.callbacks import MetricsWriter, ProgressReporter, StopOnSignal
from cal_cli.training.frozen import with_cached_scores, with_reference
from cal_cli.training.grouping import length_of
from cal_cli.training.launch import LaunchConfig, is_worker, process_state, run_workers, wanted_processes
from cal_cli.training.parts import only_projector, train_parts
from cal_cli.training.plan import ASSUMED_LENGTH, plan_memory, tell
from cal_cli.training.run_trainer import RunTrainer, save_projector


@dataclass
class TrainConfig:
    """The types of `conf/train.yaml`; what each key means stands there."""

    name: str
    seed: int
    model: Any
    data: Any
    objective: Any
    noise: NoiseConfig  # a typed config node
    epochs: float
    max_steps: int
    batch_size: int
    gradient_accumulation_steps: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    parts: dict[str, float]
    launch: LaunchConfig
    peft: AdapterConfig | None
    vision_tower_rate: float
    group_by_modality_length: bool
    global_batch_size: int | None
    gradient_checkpointing: bool
    report_to: Any  # a name or a list of them
    max_length: int | None
    bf16: bool | None
    workers: int
    logging_steps: int
    save_steps: int
    keep_checkpoints: int
    plan: bool
    resume: bool
    force: bool


def train(config: DictConfig) -> None:
    """Carry out one run in Hydra's output folder.

    Raises:
        InputError: a wrong value, or the folder holds a run of another config.
        SystemExit: 130 after Ctrl-C, 1 after a non-finite loss.
    """
    settings = typed(config, TrainConfig)
    for key in ("batch_size", "gradient_accumulation_steps", "logging_steps", "save_steps", "keep_checkpoints"):
        if getattr(settings, key) < 1:
            raise InputError(f"{key}={getattr(settings, key)}: must be at least 1")
    for key in ("learning_rate", "weight_decay", "max_grad_norm", "workers"):
        if getattr(settings, key) < 0:
            raise InputError(f"{key}={getattr(settings, key)}: must be at least 0")
    if not 0 <= settings.warmup_ratio < 1:
        raise InputError(f"warmup_ratio={settings.warmup_ratio}: allowed is a share of the steps from 0 to below 1")
    if settings.epochs <= 0 and settings.max_steps <= 0:
        raise InputError(f"epochs={settings.epochs}: must be above 0 where max_steps is not given")
    console = Console(soft_wrap=True, highlight=False)
    folder = Path(HydraConfig.get().runtime.output_dir)
    if not settings.force and completed(folder, config):
        console.print(f"{folder}: already completed; force=true repeats it")
        return
    objective = build(config, "objective")
    processes = wanted_processes(settings.launch)
    if settings.plan:
        print_plan(config, settings, processes * settings.launch.machines, console)
        return
    if processes * settings.launch.machines > 1 and not is_worker():
        run_workers(settings.launch, processes, folder)
        return
    state = process_state()
    console.quiet = not state.is_main_process
    data = build(config, "data")
    data.entries, _ = swap_conversations(data.entries, settings.noise.ratio, settings.noise.seed)
    model, processor = build(config, "model", seed=settings.seed)
    train_parts(model, settings.parts)
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    objective = with_reference(objective, model, processor)
    if settings.peft is not None:
        model = with_adapters(model, settings.peft, settings.parts)
    arguments = training_arguments(settings, folder, data)
    if state.is_main_process:
        if settings.force or not settings.resume:  # only now: a wrong value must not cost an earlier run
            forget(folder)
        write_whole(folder / "config.yaml", OmegaConf.to_yaml(config))
    collate = Collator(processor, settings.max_length, keep_ids=True, leave_out=data.max_bad > 0)
    bad_samples = BadSamples(folder / "bad_samples.jsonl", data.max_bad, console)
    with state.main_process_first():  # the others find what the first has computed
        samples = with_cached_scores(objective, model, collate, data, settings.batch_size, console)
        last = last_checkpoint(folder)
    set_seed(settings.seed)
    metrics = MetricsWriter(folder / "metrics.jsonl")
    title = f"{settings.name}/{folder.name}"
    progress = ProgressReporter(title if len(title) <= 48 else f"{title[:47]}…", console)
    interrupt = StopOnSignal()
    if state.is_main_process:
        bad_samples.add(data.bad)
    trainer = RunTrainer(
        rates=settings.parts,
        bad_samples=bad_samples,
        entries=data if settings.group_by_modality_length else None,
        model=model,
        args=arguments,
        objective=objective,
        train_dataset=samples,
        data_collator=collate,
        processing_class=processor,
        callbacks=[metrics, progress, interrupt],
    )
    trainer.remove_callback(PrinterCallback)
    if last:
        console.print(f"{folder}: continuing from {last.name}")

    start = time.perf_counter()
    problem: Exception | None = None
    try:
        with interrupt:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        status = "interrupted" if interrupt.stopped and not finished(trainer) else "completed"
        summary = summarize(settings, trainer, data, status, time.perf_counter() - start)
        if status == "completed":
            save_whole(trainer, processor, folder)
    except (NonFiniteLoss, TooManyBadSamples, OSError, SafetensorError) as error:
        problem = error
        summary = summarize(settings, trainer, data, "failed", time.perf_counter() - start)
    finally:
        progress.close()
    if state.is_main_process or problem:
        write_summary(folder, summary)
    if isinstance(problem, InputError):
        raise problem
    if problem:
        console.quiet = False  # whichever process met it
        last = last_checkpoint(folder)
        console.print(
            f"{folder}: {cause_of(problem)} "
            + (f"The last good checkpoint is {last}." if last else "No checkpoint had been saved yet.")
        )
        raise SystemExit(1)
    if summary["status"] == "interrupted":
        console.print(
            f"{folder}: interrupted and saved after step {trainer.state.global_step} of {trainer.state.max_steps}. "
            f"The same command continues it:\n  {summary['command']}"
        )
        state.wait_for_everyone()  # the first process that ends ends the others
        raise SystemExit(130)
    console.print(f"{folder}: completed, {trainer.state.global_step} steps, loss {summary['final_loss']:.4f}")


def training_arguments(settings: TrainConfig, folder: Path, data: Conversations) -> TrainingArguments:
    """The library's arguments: AdamW, cosine schedule with warm-up, checkpoints in `<folder>/checkpoints`."""
    # a batch of text alone leaves the projector out, and the last layer of a vision tower is not read
    some_unused = settings.parts.get("vision_tower", 1.0) > 0 or any("image" not in entry for entry in data.entries)
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() if settings.bf16 is None else settings.bf16
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=settings.seed,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=accumulation(settings, process_state().num_processes),
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type="cosine",
        max_grad_norm=settings.max_grad_norm,
        bf16=bf16,
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=some_unused,
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        save_total_limit=settings.keep_checkpoints,
        disable_tqdm=True,
        report_to=reporters(settings.report_to),
        run_name=f"{settings.name}/{folder.name}",
    )
    if arguments.n_gpu > 1:  # the library would split one process's batches over all GPUs (DataParallel)
        arguments._n_gpu = 1
    return arguments


def reporters(given: str | list[str]) -> list[str]:
    """The trackers that a run reports to.

    Raises:
        InputError: an unknown one, or one that is not installed.
    """
    names = [name for name in ([given] if isinstance(given, str) else list(given)) if name != "none"]
    try:
        for tracker in get_reporting_integration_callbacks(names):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to={given}: {error}") from error
    return names


def cause_of(problem: Exception) -> str:
    """Why a run failed, and what to look at."""
    if isinstance(problem, NonFiniteLoss):
        return (
            f"the loss is {problem.loss} after step {problem.step}, from the samples {', '.join(problem.samples)}: "
            "look at their images and at the learning rate."
        )
    return f"a file could not be read or written ({problem}): is the disk full? The same command continues the run."


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write `summary.json`; where even that cannot be written, the message on the terminal must do."""
    try:
        write_whole(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    except OSError:
        if summary["status"] != "failed":
            raise


def print_plan(config: DictConfig, settings: TrainConfig, devices: int, console: Console) -> None:
    """Tell what the run will need, without loading its weights; the data are read where they are here.

    Raises:
        InputError: a wrong value, or data that are here and cannot be read.
    """
    if settings.peft is not None:
        raise InputError("plan=true does not count adapters: without peft=... it tells an upper bound")
    samples, tokens = None, settings.max_length or ASSUMED_LENGTH
    node: Any = OmegaConf.to_container(config.data)
    files = [source["path"] for source in node.get("sources", [node]) if "path" in source]
    if all(Path(path).is_file() for path in files):
        data = build(config, "data")
        samples = len(data)
        longest = sorted(range(samples), key=lambda index: -length_of(data.entries[index]))[: settings.batch_size]
        collate = Collator(processor_of(config.model), settings.max_length, leave_out=True)
        tokens = collate([data[index] for index in longest])["input_ids"].shape[1]
    batches = accumulation(settings, devices)
    cuda = torch.cuda.is_available()
    bf16 = cuda and torch.cuda.is_bf16_supported() if settings.bf16 is None else settings.bf16
    found = plan_memory(
        OmegaConf.to_container(config.model),  # type: ignore[arg-type]
        dict(settings.parts),
        settings.batch_size,
        tokens,
        settings.gradient_checkpointing,
        batches,
        bf16,
        "cuda" if cuda else "cpu",
    )
    step_samples = settings.batch_size * batches * devices
    tell(found, samples, settings.epochs, settings.max_steps, step_samples, console)


def accumulation(settings: TrainConfig, devices: int) -> int:
    """Batches between two steps: as given, or as many as make `global_batch_size` samples on all devices.

    Raises:
        InputError: the samples of a step cannot be shared out.
    """
    if settings.global_batch_size is None:
        return settings.gradient_accumulation_steps
    together = settings.batch_size * devices
    if settings.global_batch_size < 1 or settings.global_batch_size % together:
        raise InputError(
            f"global_batch_size={settings.global_batch_size}: must be a multiple of batch_size={settings.batch_size} "
            f"times the {devices} processes"
        )
    return settings.global_batch_size // together


def completed(folder: Path, config: DictConfig) -> bool:
    """Whether the folder holds a completed run of this config.

    Raises:
        InputError: it holds a run of another config, completed or not.
    """
    before = read_config(folder)
    if not before:
        return False
    now: Any = OmegaConf.to_container(config)
    differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    differing = [key for key in differing if key not in OPERATIONAL]
    if differing:
        raise InputError(
            f"{folder} holds a run of another config (other values for {', '.join(differing)}): "
            "give another name=..., or force=true to replace it"
        )
    return summary_of(folder).get("status") == "completed"


def forget(folder: Path) -> None:
    """Remove what an earlier run left in the folder."""
    for name in ("summary.json", "metrics.jsonl", "config.yaml", "bad_samples.jsonl"):
        (folder / name).unlink(missing_ok=True)
    for name in ("checkpoints", "checkpoint", "projector", "adapter", "eval"):
        shutil.rmtree(folder / name, ignore_errors=True)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run; those that a kill cut short are removed.

    The library writes `trainer_state.json` last, so a checkpoint is whole where that file is.
    """
    found = sorted(
        (folder / "checkpoints").glob(f"{PREFIX_CHECKPOINT_DIR}-*"), key=lambda path: int(path.name.split("-")[-1])
    )
    whole = []
    for path in found:
        try:
            json.loads((path / "trainer_state.json").read_text())
            whole.append(path)
        except (OSError, json.JSONDecodeError):
            shutil.rmtree(path)
    return whole[-1] if whole else None


def finished(trainer: RunTrainer) -> bool:
    """Whether every step was taken."""
    return trainer.state.global_step >= trainer.state.max_steps


def save_whole(trainer: RunTrainer, processor: Any, run: Path) -> None:
    """Write `checkpoint/`, or `projector/` where nothing else learnt; each is there whole or not at all.

    Adapters are written to `adapter/` as peft does, and merged into what `checkpoint/` holds.
    """
    if not trainer.is_world_process_zero():
        return
    model = trainer.accelerator.unwrap_model(trainer.model)
    if only_projector(trainer.rates):
        replace_folder(run / "projector", lambda aside: save_projector(model, aside))
        return
    if hasattr(model, "merge_and_unload"):
        replace_folder(run / "adapter", model.save_pretrained)
        model = model.merge_and_unload()
    replace_folder(run / "checkpoint", model.save_pretrained, processor.save_pretrained)


def replace_folder(folder: Path, *writers: Callable[[Path], Any]) -> None:
    """Have a folder written beside its place, then put there."""
    aside = folder.with_name(f".{folder.name}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    for write in writers:
        write(aside)
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)


def summarize(
    settings: TrainConfig, trainer: RunTrainer, data: Conversations, status: str, seconds: float
) -> dict[str, Any]:
    """The contents of `summary.json`; seconds and memory are those of this process."""
    model: Any = trainer.model
    state, parameters = trainer.state, list(model.parameters())
    # a run too short for a log has only the mean over its steps, which the library logs at the end
    losses = [entry[name] for name in ("train_loss", "loss") for entry in state.log_history if name in entry]
    cuda = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "status": status,
        "name": settings.name,
        "objective": HydraConfig.get().runtime.choices["objective"],
        "noise": {"ratio": settings.noise.ratio, "seed": settings.noise.seed},
        "seed": settings.seed,
        "steps": state.global_step,
        "final_loss": losses[-1] if losses else None,
        "wall_seconds": round(seconds, 1),
        "bad_samples": trainer.bad_samples.count(),
        "samples_seen": round(state.epoch * len(data)) if state.epoch else 0,
        "processes": trainer.args.world_size,
        "tokens_seen": state.num_input_tokens_seen,
        "peak_memory_bytes": peak,
        "parameters": sum(p.numel() for p in parameters),
        "trainable_parameters": sum(p.numel() for p in parameters if p.requires_grad),
        "git_commit": git_commit(),
        "versions": versions(),
        "device": device_name(),
        "command": command_line("train"),
    }
