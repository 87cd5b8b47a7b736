"""`cal train plan=true`: print what a run needs, before hours are spent; no weights are loaded."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from cal_cli.data.collator import Collator
from cal_cli.data.sampler import estimate_length
from cal_cli.models.load import ModelSource
from cal_cli.runtime.config import build
from cal_cli.runtime.console import make_table
from cal_cli.training.arguments import TrainConfig, count_step_samples, divide_step, uses_bf16
from cal_cli.training.memory import Plan, plan_memory

ROWS = {
    "gathered": "gathered from other devices",
    "unpacked": "a four-bit weight, unpacked",
    "on_cpu": "in the CPU's memory instead",
}
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
        dict(settings.parts),
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
