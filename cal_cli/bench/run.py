"""`cal bench`: time and memory of a training step as ratios, with intervals, to `bench.json` and the terminal."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.stats import bootstrap

from cal_cli.bench import steps
from cal_cli.bench.answering import NAMES as ANSWERS
from cal_cli.bench.answering import answer_rates
from cal_cli.bench.shapes import Checkpoint, Shape
from cal_cli.bench.trainers import NAMES, trainer_rates
from cal_cli.config import build, command_line, typed
from cal_cli.errors import InputError
from cal_cli.files import device_name, versions, write_whole


@dataclass
class BenchConfig:
    """The types of `conf/bench.yaml`; what each key means stands there."""

    shape: Any
    measure: str
    ways: list[str]
    repeats: int
    depth: int | None
    width: int | None
    checkpointing: bool | None
    memory: bool
    steps: int
    scenes: int


def bench(config: DictConfig) -> None:
    """Measure, write `bench.json` into Hydra's output folder, print a table.

    Raises:
        InputError: a wrong value.
    """
    settings = typed(config, BenchConfig)
    for key in ("repeats", "steps", "scenes", "depth", "width"):
        value = getattr(settings, key)
        if value is not None and value < 1:
            raise InputError(f"{key}={value}: must be at least 1")
    if settings.measure not in MEASURES:
        raise InputError(f"measure={settings.measure}: allowed are {', '.join(MEASURES)}")
    unknown = sorted(set(settings.ways) - set(steps.WAYS))
    if unknown or not settings.ways:
        raise InputError(f"ways={','.join(unknown) or '[]'}: allowed are some of {', '.join(steps.WAYS)}")
    console = Console(soft_wrap=True, highlight=False)
    result = MEASURES[settings.measure](config, settings, console)
    told = {"command": command_line("bench"), "device": device_name(), "versions": versions()}
    path = Path(HydraConfig.get().runtime.output_dir) / "bench.json"
    write_whole(path, json.dumps(told | result, indent=2) + "\n")
    console.print(f"{path}")


def bench_steps(config: DictConfig, settings: BenchConfig, console: Console) -> dict[str, Any]:
    """Time a step in each way, in turns, and measure its peak memory; print the table."""
    cuda = torch.cuda.is_available()
    full: Shape | Checkpoint = build(config, "shape")
    try:
        shape = full.scaled(settings.depth, settings.width)
    except ValueError as error:
        raise InputError(str(error)) from error
    dtype = torch.bfloat16 if cuda else torch.float32
    checkpointing = cuda if settings.checkpointing is None else settings.checkpointing
    model: Any = shape.model(dtype, checkpointing).to("cuda" if cuda else "cpu")
    batch = shape.batch(model.device, dtype)
    losses = {way: steps.loss_of(way, model, batch) for way in settings.ways}
    rounds = list(
        track(
            steps.interleaved(model, losses, settings.repeats),
            "measuring",
            settings.repeats,
            console=console,
            disable=not console.is_terminal,
        )
    )
    tokens = int(batch["attention_mask"].sum())
    forward_share = steps.decoder_forward_share(model, batch)
    text_share = shape.text_tokens / (shape.text_tokens + shape.image_tokens)
    memory = {way: steps.peak_memory(model, loss) for way, loss in losses.items() if settings.memory}
    operations = {way: steps.operations(model, loss) for way, loss in losses.items()}
    seconds = {way: [round_[way] for round_ in rounds] for way in settings.ways}
    ratios = {
        f"{way}/{base}": ratio(seconds[way], seconds[base])
        for way in settings.ways
        for base in ("ce_library", "ce", "cal_released")
        if base in seconds and way != base
    }
    result = {
        "measure": "step",
        "shape": asdict(shape),
        "image_tokens": shape.image_tokens,
        "dtype": str(dtype).removeprefix("torch."),
        "checkpointing": checkpointing,
        "repeats": settings.repeats,
        "seconds": seconds,
        "tokens_per_second": {way: tokens / float(np.median(values)) for way, values in seconds.items()},
        "ratios": ratios,
        "operations": operations,
        "peak_memory_bytes": memory,
        "text_share": text_share,
        "decoder_forward_share": forward_share,
        "floor": text_share * forward_share,
    }
    console.print(table_of_steps(result, HydraConfig.get().runtime.choices["shape"]))
    if "cal/ce" in ratios:
        middle, (low, high) = ratios["cal/ce"]["median"], ratios["cal/ce"]["ci95"]
        console.print(
            f"CAL over CE, both ours: {middle - 1:+.1%} [{low - 1:+.1%}, {high - 1:+.1%}]; the floor is "
            f"{text_share * forward_share:.1%} (text is {text_share:.1%} of the tokens, the decoder's forward pass "
            f"{forward_share:.1%} of a CE step)"
        )
    return result


def ratio(values: list[float], base: list[float]) -> dict[str, Any]:
    """The median over rounds of a ratio, with a 95 % bootstrap interval of that median (None for one round)."""
    ratios = np.divide(values, base)
    interval = None
    if len(ratios) > 1:
        found = bootstrap((ratios,), np.median, method="percentile", rng=0).confidence_interval
        interval = [float(found.low), float(found.high)]
    return {"median": float(np.median(ratios)), "ci95": interval}


def told(value: dict[str, Any] | None) -> str:
    """A ratio with its interval, as the tables print it."""
    if value is None:
        return "1"
    interval = value["ci95"]
    return f"{value['median']:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def table_of_steps(result: dict[str, Any], name: str) -> Table:
    """One row a way: time as ratios, tokens a second, memory."""
    shape = result["shape"]
    size = f" of {shape['layers']} layers, width {shape['hidden_size']}" if "layers" in shape else ""
    tokens = f"{result['image_tokens']} image + {shape['text_tokens']} text tokens a sample"
    table = Table(title=f"{name}{size}: {tokens}", box=SIMPLE_HEAD, pad_edge=False)
    memory, operations = result["peak_memory_bytes"], result["operations"]
    table.add_column("way", no_wrap=True)
    for base in ("ce_library", "ce"):
        if base in result["seconds"]:
            table.add_column(f"time\n/ {base}", justify="right", no_wrap=True)
    table.add_column("tokens/s", justify="right", no_wrap=True)
    table.add_column("GFLOP", justify="right", no_wrap=True)
    table.add_column("GB", justify="right")
    for way in result["seconds"]:
        row = [way]
        row += [told(result["ratios"].get(f"{way}/{b}")) for b in ("ce_library", "ce") if b in result["seconds"]]
        row += [f"{result['tokens_per_second'][way]:,.0f}", f"{operations[way] / 1e9:,.0f}"]
        row += [f"{memory[way] / 1e9:.2f}" if memory else "-"]
        table.add_row(*row)
    return table


def bench_trainers(config: DictConfig, settings: BenchConfig, console: Console) -> dict[str, Any]:
    """Train the tiny model with CE, by our trainer and by TRL's, in turns; print tokens a second."""
    rates = trainer_rates(settings.steps, settings.repeats, console)
    ours = {name: ratio(values, rates["trl"]) for name, values in rates.items() if name != "trl"}
    table = Table(title=f"training the tiny model, {settings.steps} steps a round", box=SIMPLE_HEAD)
    table.add_column("trainer")
    table.add_column("tokens/s", justify="right")
    table.add_column("rate / trl.SFTTrainer", justify="right")
    for name, values in rates.items():
        table.add_row(NAMES[name], f"{np.median(values):,.0f}", told(ours.get(name)))
    console.print(table)
    return {"measure": "trainer", "steps": settings.steps, "tokens_per_second": rates, "ratios": ours}


def bench_answers(config: DictConfig, settings: BenchConfig, console: Console) -> dict[str, Any]:
    """Have the tiny model answer, by our batches and by the library's pipeline, in turns; print questions a second."""
    rates, same = answer_rates(settings.scenes, settings.repeats, console)
    faster = ratio(rates["cal"], rates["pipeline"])
    table = Table(title=f"answers of the tiny model, {5 * settings.scenes} questions a round", box=SIMPLE_HEAD)
    table.add_column("way")
    table.add_column("questions/s", justify="right")
    table.add_column("rate / pipeline", justify="right")
    for name, values in rates.items():
        table.add_row(ANSWERS[name], f"{np.median(values):,.0f}", told(faster if name == "cal" else None))
    console.print(table)
    console.print("the same answers" if same else "not all answers are the same")
    told_of = {"measure": "eval", "questions": 5 * settings.scenes, "questions_per_second": rates}
    return told_of | {"ratios": {"cal/pipeline": faster}, "same_answers": same}


MEASURES = {"step": bench_steps, "trainer": bench_trainers, "eval": bench_answers}
