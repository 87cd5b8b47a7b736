"""Ways to take one training step, timed in turns: what differs between them is the loss alone."""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from cal_cli.bench.released import released_loss
from cal_cli.bench.shapes import Shape
from cal_cli.objective import ContrastiveAlignmentLoss, scores_without_image

WAYS = {
    "ce_library": "CE as transformers does it: logits at every position",
    "ce": "CE ours: logits at supervised positions, in chunks",
    "cal_released": "CAL as the paper's released code does it: a masked full-length second pass, all logits twice",
    "cal": "CAL ours: a second pass over the text alone",
    "cal_cached": "CAL ours, with scores computed before training",
}


def loss_of(way: str, model: Any, batch: dict) -> Callable[[], torch.Tensor]:
    """What computes the loss of a batch in one of the `WAYS`."""
    if way == "ce_library":
        return lambda: model(**batch, use_cache=False).loss
    if way == "cal_released":
        return lambda: released_loss(model, batch)
    if way == "cal_cached":
        cached = {**batch, "scores_without_image": scores_without_image(ContrastiveAlignmentLoss(), model, batch)}
        return lambda: ContrastiveAlignmentLoss(contrast="cached")(model, cached).loss
    objective = ContrastiveAlignmentLoss() if way == "cal" else ContrastiveAlignmentLoss(alpha=1.0, beta=1.0)
    return lambda: objective(model, batch).loss


def clock() -> float:
    """Seconds, once the device has done all it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def timed_step(model: Any, loss: Callable[[], torch.Tensor]) -> float:
    """Seconds of one forward and backward pass."""
    start = clock()
    loss().backward()
    seconds = clock() - start
    model.zero_grad(set_to_none=True)
    return seconds


def interleaved(model: Any, batch: dict, ways: list[str], repeats: int) -> Iterator[dict[str, float]]:
    """Seconds of a step in each way, round after round, so that what else the machine does meets all alike.

    The order turns from round to round; a first round, which is not told, warms up.
    """
    losses = {way: loss_of(way, model, batch) for way in ways}
    for number in range(repeats + 1):
        turn = ways[number % len(ways) :] + ways[: number % len(ways)]
        seconds = {way: timed_step(model, losses[way]) for way in turn}
        if number:
            yield {way: seconds[way] for way in ways}


def decoder_forward_share(model: Any, batch: dict, repeats: int = 3) -> float:
    """The share of a CE step of ours that its decoder's forward pass takes, the smallest of some runs."""
    decoder, marks = model.get_decoder(), []
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: marks.append(clock())),
        decoder.register_forward_hook(lambda *_: marks.append(clock())),
    ]
    shares = []
    loss = loss_of("ce", model, batch)
    for _ in range(repeats):
        marks.clear()
        seconds = timed_step(model, loss)
        shares.append((marks[1] - marks[0]) / seconds)
    for hook in hooks:
        hook.remove()
    return sorted(shares)[len(shares) // 2]


def peak_memory(shape: Shape, way: str, dtype: torch.dtype, checkpointing: bool) -> int:
    """Bytes that a step in one way needs at its peak: weights, gradients, activations; in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak_memory, (shape, way, dtype, checkpointing))


def _peak_memory(shape: Shape, way: str, dtype: torch.dtype, checkpointing: bool) -> int:
    before = _resident("VmRSS")
    model: Any = shape.model(dtype, checkpointing).to("cuda" if torch.cuda.is_available() else "cpu")
    loss = loss_of(way, model, shape.batch(model.device, dtype))
    for _ in range(2):
        timed_step(model, loss)
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else _resident("VmHWM") - before


def _resident(which: str) -> int:
    """Bytes of this process in memory: now (`VmRSS`) or at most so far (`VmHWM`).

    From /proc, as `getrusage` hands a parent's maximum on to its children.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))
