"""Ways to compute one training step, timed in turns; they differ in the loss only. One is the paper's released code."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cal_cli.objective import IGNORED, RuleLoss, scores_without_image
from cal_cli.objective.contrasts import Cached

WAYS = {  # besides our objectives
    "ce_library": "CE as transformers does it: logits at every position",
    "cal_released": "CAL as the paper's released code does it: a masked full-length second pass, all logits twice",
}
LEARNING_STEPS = 20  # before a step is timed: more than the warm-up of the rules that learn


def make_loss(way: str, model: Any, batch: dict, objective: RuleLoss | None = None) -> Callable[[], torch.Tensor]:
    """Return a function that computes the loss of a batch in one of the `WAYS`, or else with an objective.

    What an objective reads from its data is added to the batch; what it learns from the batch, it has learnt before.
    """
    if way == "ce_library":
        return lambda: model(**batch, use_cache=False).loss
    if way == "cal_released":
        return lambda: compute_released_loss(model, batch)
    assert objective is not None
    batch = {**batch, "loss_weights": torch.ones_like(batch["labels"], dtype=torch.float32)}
    if isinstance(objective.contrast, Cached):
        batch["scores_without_image"] = scores_without_image(objective, model, batch)
    with torch.no_grad():
        measured = objective(model, batch).measured
    if measured is not None:
        for _ in range(LEARNING_STEPS):
            objective.learn(measured)
    return lambda: objective(model, batch).loss


def read_clock() -> float:
    """Return seconds, after all work of the device is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def time_step(model: Any, loss: Callable[[], torch.Tensor]) -> float:
    """Return the seconds of one forward and backward pass."""
    start = read_clock()
    loss().backward()
    seconds = read_clock() - start
    model.zero_grad(set_to_none=True)
    return seconds


def take_turns(ways: Mapping[str, Callable[[], Any]], rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the results of all ways, round by round, so that other load on the machine affects all ways alike.

    The order rotates from round to round; a first round, which is not reported, warms up.
    """
    names = list(ways)
    for number in range(rounds + 1):
        order = names[number % len(names) :] + names[: number % len(names)]
        results = {name: ways[name]() for name in order}
        if number:
            yield {name: results[name] for name in names}


def measure_decoder_share(model: Any, loss: Callable[[], torch.Tensor], repeats: int = 3) -> float:
    """Return the fraction of the decoder's forward pass in the time of a step, the median of several runs."""
    decoder, marks = model.get_decoder(), []
    hooks = [
        decoder.register_forward_pre_hook(lambda *_: marks.append(read_clock())),
        decoder.register_forward_hook(lambda *_: marks.append(read_clock())),
    ]
    shares = []
    for _ in range(repeats):
        marks.clear()
        seconds = time_step(model, loss)
        shares.append((marks[1] - marks[0]) / seconds)
    for hook in hooks:
        hook.remove()
    return sorted(shares)[len(shares) // 2]


def count_operations(model: Any, loss: Callable[[], torch.Tensor]) -> int:
    """Count the floating-point operations of a step's matrix products, with torch's counter: the same on any machine.

    On a CPU torch does not count those inside attention.
    """
    time_step(model, loss)  # the first step also verifies the head, which is not counted
    with FlopCounterMode(display=False) as counter:
        time_step(model, loss)
    return counter.get_total_flops()


def measure_peak_memory(model: Any, loss: Callable[[], torch.Tensor]) -> int:
    """Measure the bytes that tensors hold at the peak of a step: weights, activations, gradients.

    On a GPU by `torch.cuda.max_memory_allocated`; on a CPU from the profiler's record of every allocation, which counts
    neither freed memory that the C library keeps nor the rest of the process.
    """
    time_step(model, loss)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        time_step(model, loss)
        return torch.cuda.max_memory_allocated()
    during = measure_tensor_bytes(lambda: time_step(model, loss))
    return during + sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def measure_tensor_bytes(step: Callable[[], Any]) -> int:
    """Measure the bytes that the tensors made by `step` hold at their peak, on a CPU."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    return max(event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]")


def compute_released_loss(model: Any, batch: Mapping[str, Any], alpha: float = 1.0, beta: float = 5.0) -> Tensor:
    """Compute the loss of a model like LLaVA (image features among the text's embeddings), a differentiable scalar.

    Raises ValueError if the model passes its decoder more than embeddings, mask and positions.
    """
    given: dict[str, Any] = {}
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with_image = model(**inputs, use_cache=False).logits.float()
    hook.remove()
    known = {"inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "cache_position"}
    beside = sorted(name for name in given.keys() - known if given[name] is not None)
    positions = given.get("position_ids")
    own_positions = positions is not None and positions.dim() != 2
    if beside or own_positions or not torch.is_tensor(given["attention_mask"]) or given["attention_mask"].dim() != 2:
        raise ValueError(
            f"{type(model).__name__} is not like LLaVA, for which the released code was written: leave cal_released "
            "out of the ways"
        )
    with torch.no_grad():
        text = batch["attention_mask"] * (batch["input_ids"] != model.config.image_token_id)
        hidden = decoder(
            inputs_embeds=given["inputs_embeds"],
            attention_mask=text,
            position_ids=torch.arange(text.shape[1], device=text.device)[None],
            use_cache=False,
        ).last_hidden_state
        without_image = model.lm_head(hidden).float()

    labels = batch["labels"][:, 1:].flatten()
    supervised = labels != IGNORED
    logits, others = (part[:, :-1].flatten(0, 1) for part in (with_image, without_image))
    with torch.no_grad():
        target = labels.clamp_min(0)[:, None]
        delta = (logits.gather(1, target) - others.gather(1, target))[:, 0]
        # over the whole flattened batch, supervised or not
        weights = F.avg_pool1d(delta.clamp(alpha, beta)[None], 3, stride=1, padding=1, count_include_pad=False)[0]
        weights = weights * supervised
    cross_entropy = F.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none")
    return (cross_entropy * weights).sum() / (weights.sum() + 1e-6)
