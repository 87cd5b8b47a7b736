"""`cal train`: one run folder from a config; the same command again continues it or finds it complete."""

import time
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors import SafetensorError
from transformers import PrinterCallback, set_seed

from cal_cli.config import build, typed
from cal_cli.data.collator import Collator
from cal_cli.data.noise import swap_conversations
from cal_cli.errors import InputError
from cal_cli.files import write_whole
from cal_cli.models.load import checkpoint_activations
from cal_cli.objective import NonFiniteLoss
from cal_cli.training.adapters import with_adapters
from cal_cli.training.bad_samples import BadSamples, TooManyBadSamples
from cal_cli.training.callbacks import MetricsWriter, ProgressReporter, StopOnSignal
from cal_cli.training.frozen import with_cached_scores, with_reference
from cal_cli.training.launch import is_worker, join, run_workers, wanted_processes
from cal_cli.training.parts import only_projector, train_parts
from cal_cli.training.plan import print_plan
from cal_cli.training.run_folder import completed, forget, last_checkpoint, save_whole, summarize, write_summary
from cal_cli.training.run_trainer import RunTrainer
from cal_cli.training.settings import TrainConfig, check, training_arguments


def train(config: DictConfig) -> None:
    """Carry out one run in Hydra's output folder.

    Raises:
        InputError: a wrong value, or the folder holds a run of another config.
        SystemExit: 130 after Ctrl-C, 1 after a non-finite loss.
    """
    settings = typed(config, TrainConfig)
    check(settings)
    console = Console(soft_wrap=True, highlight=False)
    folder = Path(HydraConfig.get().runtime.output_dir)
    processes = wanted_processes(settings.launch, elsewhere=settings.plan)
    if settings.plan:
        print_plan(config, settings, processes * settings.launch.machines, console)
        return
    if not settings.force and completed(folder, config):
        console.print(f"{folder}: already completed; force=true repeats it")
        return
    objective = build(config, "objective")
    if processes * settings.launch.machines > 1 and not is_worker():
        run_workers("train", settings.launch, processes, folder)
        return
    state = join(settings.launch)
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
    if not only_projector(settings.parts) and not collate.closes(data[0]):
        console.print(
            "the chat template closes answers with no end token, so that the model will not learn to stop: give "
            "model.template=v1, or a .jinja file that closes them"
        )
    with state.main_process_first():  # the others find what the first has computed
        samples = with_cached_scores(objective, model, collate, data, settings.batch_size, console)
        last = last_checkpoint(folder)
    bad_samples = BadSamples(folder / "bad_samples.jsonl", data.max_bad, console)
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


def cause_of(problem: Exception) -> str:
    """Why a run failed, and what to look at."""
    if isinstance(problem, NonFiniteLoss):
        return (
            f"the loss is {problem.loss} after step {problem.step}, from the samples {', '.join(problem.samples)}: "
            "look at their images and at the learning rate."
        )
    return f"a file could not be read or written ({problem}): is the disk full? The same command continues the run."


def finished(trainer: RunTrainer) -> bool:
    """Whether every step was taken."""
    return trainer.state.global_step >= trainer.state.max_steps
