"""`cal bench`: time and memory of a training step as ratios with intervals, in `bench.json` and on the terminal."""

from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from cal_cli.bench import steps
from cal_cli.bench.shapes import Checkpoint, Shape
from cal_cli.commands.hydra_app import get_job
from cal_cli.objective import CrossEntropyLoss
from cal_cli.runtime.config import build, check_types, limited
from cal_cli.runtime.console import make_console, make_table, track_items
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.files import write_json
from cal_cli.runtime.runs import get_device_name, get_versions
from cal_cli.statistics.bootstrap import median_ratio
from cal_cli.statistics.seeds import format_interval
from cal_cli.training.reference import load_objective_reference


@dataclass(kw_only=True)
class BenchConfig:
    """The types and ranges of `conf/bench.yaml`, which documents each key."""

    shape: Any
    ways: list[str]
    repeats: int = limited(1)
    depth: int | None = limited(1)
    width: int | None = limited(1)
    checkpointing: bool | None
    memory: bool


def bench(config: DictConfig) -> None:
    """Measure, write `bench.json` to the job's folder, and print a table."""
    settings = check_types(config, BenchConfig)
    objectives = GlobalHydra.instance().config_loader().get_group_options("objective")
    allowed = [*steps.WAYS, *(name for name in objectives if name not in steps.WAYS)]
    unknown = sorted(set(settings.ways) - set(allowed))
    if unknown or not settings.ways:
        raise InputError(f"ways={','.join(unknown) or '[]'}: allowed are some of {', '.join(allowed)}")
    job, console = get_job(), make_console()
    result = measure_steps(config, settings, console)
    origin = {"command": job.command, "device": get_device_name(), "versions": get_versions()}
    path = job.folder / "bench.json"
    write_json(path, origin | result)
    console.print(f"{path}")


def measure_steps(config: DictConfig, settings: BenchConfig, console: Console) -> dict[str, Any]:
    """Time a step in each way, in turns, and measure its peak memory; print the table."""
    cuda = torch.cuda.is_available()
    full: Shape | Checkpoint = build(config, "shape")
    try:
        shape = full.scale(settings.depth, settings.width)
    except ValueError as error:
        raise InputError(str(error)) from error
    dtype = torch.bfloat16 if cuda else torch.float32
    checkpointing = cuda if settings.checkpointing is None else settings.checkpointing
    device = "cuda" if cuda else "cpu"
    model: Any = shape.make_model(dtype, checkpointing, device)
    batch = shape.make_batch(device, dtype)
    objectives = {
        way: load_objective_reference(build(compose("train", overrides=[f"objective={way}"]), "objective"), model, None)
        for way in settings.ways
        if way not in steps.WAYS
    }  # a reference is a copy of the model
    losses = {way: steps.make_loss(way, model, batch, objectives.get(way)) for way in settings.ways}
    ways = {way: partial(steps.time_step, model, loss) for way, loss in losses.items()}
    turns = steps.take_turns(ways, settings.repeats)
    rounds = list(track_items(turns, "measuring", console, settings.repeats))
    tokens = int(batch["attention_mask"].sum())
    ce = steps.make_loss("ce", model, batch, CrossEntropyLoss())
    forward_share = steps.measure_decoder_share(model, ce)
    text_share = shape.text_tokens / (shape.text_tokens + shape.image_tokens)
    memory = {way: steps.measure_peak_memory(model, loss) for way, loss in losses.items() if settings.memory}
    operations = {way: steps.count_operations(model, loss) for way, loss in losses.items()}
    seconds = {way: [round_[way] for round_ in rounds] for way in settings.ways}
    ratios = {
        f"{way}/{base}": median_ratio(seconds[way], seconds[base])
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
    console.print(make_step_table(result, str(get_job().choices["shape"])))
    if "cal/ce" in ratios:
        median, interval = ratios["cal/ce"]["median"], ratios["cal/ce"]["ci95"]
        bounds = "" if interval is None else f" [{interval[0] - 1:+.1%}, {interval[1] - 1:+.1%}]"
        console.print(
            f"CAL over CE, both ours: {median - 1:+.1%}{bounds}; the floor is {text_share * forward_share:.1%} (text "
            f"is {text_share:.1%} of the tokens, the decoder's forward pass {forward_share:.1%} of a CE step)"
        )
    return result


def format_ratio(value: dict[str, Any] | None) -> str:
    """Format a ratio with its interval; `1` for the base itself."""
    return "1" if value is None else format_interval({"value": value["median"], **value}, digits=2)


def make_step_table(result: dict[str, Any], name: str) -> Table:
    """Make a table with one row for each way: time as ratios, tokens per second, operations, memory."""
    shape = result["shape"]
    size = f" of {shape['layers']} layers, width {shape['hidden_size']}" if "layers" in shape else ""
    tokens = f"{result['image_tokens']} image + {shape['text_tokens']} text tokens per sample"
    bases = [base for base in ("ce_library", "ce") if base in result["seconds"]]
    headers = ["way", *(f"time\n/ {base}" for base in bases), "tokens/s", "GFLOP", "GB"]
    table = make_table(*headers, title=f"{name}{size}: {tokens}")
    table.padding = (0, 1, 0, 0)  # else the intervals of a large model are cut on a terminal of 80 columns
    for column in table.columns:
        column.no_wrap = True
    for column in table.columns[1:]:
        column.justify = "right"
    memory, operations = result["peak_memory_bytes"], result["operations"]
    for way in result["seconds"]:
        row = [way, *(format_ratio(result["ratios"].get(f"{way}/{base}")) for base in bases)]
        row += [f"{result['tokens_per_second'][way]:,.0f}", f"{operations[way] / 1e9:,.0f}"]
        table.add_row(*row, f"{memory[way] / 1e9:.2f}" if memory else "-")
    return table
