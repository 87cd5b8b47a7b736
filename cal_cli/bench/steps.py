"""Ways to take one training step, timed in turns: what differs between them is the loss alone."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cal_cli.bench.released import released_loss
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


def interleaved(model: Any, losses: dict[str, Callable[[], torch.Tensor]], repeats: int) -> Iterator[dict[str, float]]:
    """Seconds of a step in each way, round after round, so that what else the machine does meets all alike.

    The order turns from round to round; a first round, which is not told, warms up.
    """
    ways = list(losses)
    for number in range(repeats + 1):
        turn = ways[number % len(ways) :] + ways[: number % len(ways)]
        seconds = {way: timed_step(model, losses[way]) for way in turn}
        if number:
            yield {way: seconds[way] for way in ways}


def decoder_forward_share(model: Any, batch: dict, repeats: int = 3) -> float:
    """The share of a CE step of ours that its decoder's forward pass takes, the median of some runs."""
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


def operations(model: Any, loss: Callable[[], torch.Tensor]) -> int:
    """Floating-point operations of a step's matrix products, by torch's own count: the same on any machine.

    On a CPU torch does not count those within attention.
    """
    timed_step(model, loss)  # the first step also looks into the head, which is not counted
    with FlopCounterMode(display=False) as counter:
        timed_step(model, loss)
    return counter.get_total_flops()


def peak_memory(model: Any, loss: Callable[[], torch.Tensor]) -> int:
    """Bytes that tensors hold at the peak of a step: weights, activations, gradients.

    What `torch.cuda.max_memory_allocated` counts; on a CPU from the profiler's record of every allocation, so that
    neither what the C library keeps of freed memory nor what else the process loaded is counted.
    """
    timed_step(model, loss)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        timed_step(model, loss)
        return torch.cuda.max_memory_allocated()
    during = tensor_bytes_during(lambda: timed_step(model, loss))
    return during + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def tensor_bytes_during(step: Callable[[], Any]) -> int:
    """Bytes that the tensors made by `step` hold at their peak, on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")
