"""The settings of `cal train`: their types and ranges, and the `TrainingArguments` that follow from them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from cal_cli.data.noise import NoiseConfig
from cal_cli.data.sample import Conversations
from cal_cli.models.parts import AdapterConfig, complete_rates
from cal_cli.runtime.config import SEEDS, limited
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.processes import LaunchConfig, count_cores, get_process_state


@dataclass(kw_only=True)
class TrainConfig:
    """The types and ranges of `conf/train.yaml`, which documents each key."""

    name: str
    seed: int = limited(0, below=SEEDS)
    model: Any
    data: Any
    objective: Any
    stage: str | None
    noise: NoiseConfig  # a typed config node
    image_dropout: float | None = limited(0, below=1)
    epochs: float
    max_steps: int
    batch_size: int = limited(1)
    global_batch_size: int | None = limited(1)
    learning_rate: float = limited(0)
    weight_decay: float = limited(0)
    warmup_ratio: float = limited(0, below=1)
    max_grad_norm: float = limited(0)
    parts: dict[str, float | None]
    launch: LaunchConfig
    peft: AdapterConfig | None
    group_by_modality_length: bool
    gradient_checkpointing: bool
    report_to: Any  # a name or a list of names
    max_length: int | None = limited(1)
    bf16: bool | None
    workers: int = limited(0)
    logging_steps: int = limited(1)
    save_steps: int = limited(1)
    keep_checkpoints: int = limited(1)
    benchmark: Any
    evaluate_every: int | None = limited(1)
    evaluate_limit: int = limited(1)
    plan: bool
    resume: bool
    force: bool


def check_combinations(settings: TrainConfig) -> None:
    """Raise InputError if settings exclude each other."""
    if settings.peft is not None and settings.launch.shard is not None:
        raise InputError("peft cannot be sharded, because its adapters are merged at the end: give launch=ddp")
    if settings.evaluate_every is not None and settings.launch.shard is not None:
        raise InputError("evaluate_every: a sharded model cannot answer questions: give launch=ddp, or leave it out")
    if settings.max_steps == 0 or settings.max_steps < -1:
        given = f"max_steps={settings.max_steps}"
        raise InputError(f"{given}: must be at least 1, or -1 to stop after the epochs; plan=true does not train")
    if settings.epochs <= 0 and settings.max_steps <= 0:
        raise InputError(f"epochs={settings.epochs}: must be above 0 if max_steps is not given")


def make_training_arguments(
    settings: TrainConfig, folder: Path, data: Conversations, step_samples: int
) -> TrainingArguments:
    """Return the Trainer's arguments: AdamW, cosine schedule with warm-up, checkpoints in `<folder>/checkpoints`.

    `step_samples` is the number of samples of an optimizer step, see `divide_step`.
    """
    # a batch of text does not use the projector, and the last layer of a vision tower is not read
    some_unused = complete_rates(settings.parts)["vision_tower"] > 0 or any(
        "image" not in entry for entry in data.entries
    )
    os.environ["TENSORBOARD_LOGGING_DIR"] = str(folder / "tensorboard")  # the only way to set it
    batch, accumulated = divide_step(step_samples, get_process_state().num_processes, settings.batch_size)
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        seed=settings.seed,
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulated,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup_ratio,
        lr_scheduler_type="cosine",
        max_grad_norm=settings.max_grad_norm,
        bf16=uses_bf16(settings),
        use_cpu=not torch.cuda.is_available(),
        ddp_find_unused_parameters=some_unused,
        **make_sharding_arguments(settings.launch),
        dataloader_num_workers=min(settings.workers, count_cores()),
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        include_num_input_tokens_seen="non_padding",
        logging_steps=settings.logging_steps,
        logging_nan_inf_filter=False,
        save_steps=settings.save_steps,
        eval_strategy="no" if settings.evaluate_every is None else "steps",
        eval_steps=settings.evaluate_every,
        disable_tqdm=True,
        report_to=check_trackers(settings.report_to),
        run_name=f"{settings.name}/{folder.name}",
    )
    if arguments.n_gpu > 1:  # the Trainer would split one process's batches over all GPUs (DataParallel)
        arguments._n_gpu = 1
    return arguments


def uses_bf16(settings: TrainConfig) -> bool:
    """Return whether to compute in bf16: as given, or if the accelerator supports it."""
    if settings.bf16 is not None:
        return settings.bf16
    return torch.cuda.is_available() and torch.cuda.is_bf16_supported()


def make_sharding_arguments(launch: LaunchConfig) -> dict[str, Any]:
    """Return the `TrainingArguments` of a sharded launch; empty for any other."""
    if launch.shard is None:
        return {}
    options = {
        "version": 2,
        "reshard_after_forward": launch.shard == "parameters",
        "cpu_offload": launch.offload,
        "auto_wrap_policy": "NO_WRAP",  # CALTrainer shards the model itself
        "state_dict_type": "FULL_STATE_DICT",
    }
    # otherwise unsharded gradients would stay in memory between the batches of one step
    each_batch = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    return {"fsdp": True, "fsdp_config": options, "accelerator_config": each_batch}


def count_step_samples(settings: TrainConfig, devices: int) -> int:
    """Return the number of samples of an optimizer step on all devices."""
    if settings.global_batch_size is None:
        return settings.batch_size * devices
    return settings.global_batch_size


def divide_step(samples: int, devices: int, batch_size: int) -> tuple[int, int]:
    """Divide the samples of an optimizer step into batches of at most `batch_size`.

    Returns the number of samples in a batch of a device, and the number of batches that each device accumulates.

    Raises InputError if the devices cannot have equally many samples.
    """
    if samples % devices:
        raise InputError(
            f"{samples} samples in an optimizer step cannot be divided equally among {devices} processes: give "
            "another launch.processes, or for a new run another global_batch_size"
        )
    own = samples // devices
    accumulated = next(count for count in range(1, own + 1) if own % count == 0 and own // count <= batch_size)
    return own // accumulated, accumulated


def check_trackers(given: str | list[str]) -> list[str]:
    """Return the names of the trackers that a run reports to. Raises InputError if one is unknown or not installed."""
    names = [name for name in ([given] if isinstance(given, str) else list(given)) if name != "none"]
    try:
        for tracker in get_reporting_integration_callbacks(names):
            tracker()
    except (ValueError, RuntimeError, ImportError) as error:
        raise InputError(f"report_to={given}: {error}") from error
    return names
