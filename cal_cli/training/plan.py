"""`cal train plan=true`: what a run will need, before the hours are spent; no weights are loaded.

Weights, gradients and AdamW's two moments follow from the parameters of a model on the meta device. What the backward
pass keeps is counted on that model with tensors that hold no numbers (`FakeTensorMode`), layer for layer as autograd
would keep it.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from cal_cli.config import build
from cal_cli.data.collator import Collator
from cal_cli.models.load import checkpoint_activations
from cal_cli.models.outline import outline
from cal_cli.models.pretrained import processor_of
from cal_cli.objective.head import LOGITS_HELD
from cal_cli.training.adapters import AdapterConfig, adapted_layers, with_adapters
from cal_cli.training.grouping import length_of
from cal_cli.training.parts import parts_of, train_parts
from cal_cli.training.settings import TrainConfig, accumulation
from cal_cli.training.sharding import decoder_layers

ROWS = {
    "gathered": "gathered from other devices",
    "unpacked": "a weight of four bits, unpacked",
    "on_cpu": "in the CPU's memory instead",
}
ASSUMED_LENGTH = 2048  # tokens, where neither max_length nor the data tell


@dataclass
class Plan:
    """What a run needs on each device; memory in bytes.

    Where the model is divided, weights, gradients and moments are the device's own share; `gathered` is what it holds
    of the others' beside it while it computes. With off-load the shares lie in the memory of the CPU.
    """

    parameters: dict[str, int]  # by part
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int  # of a chunk
    gathered: int
    unpacked: int  # the largest weight, where weights lie in four bits
    on_cpu: int
    peak: int
    tokens: int  # of the longest sample, its image among them


def plan_memory(
    model: dict[str, Any],
    rates: dict[str, float],
    batch_size: int,
    tokens: int,
    checkpointing: bool,
    accumulation: int,
    bf16: bool,
    device: str,
    devices: int = 1,
    shard: str | None = None,
    offload: bool = False,
    adapters: AdapterConfig | None = None,
) -> Plan:
    """Plan a step of `batch_size` samples of the same length, one process a device.

    Args:
        model: the `model` node of the run's config.
        rates: see `train_parts`.
        batch_size: samples a device and batch.
        tokens: length of each.
        checkpointing: gradient checkpointing.
        accumulation: batches a step; above 1 gradients lie in memory while activations do.
        bf16: activations in bf16 beside weights in their own type, as autocast has them.
        device: `cpu` or `cuda`, for the size of the loss's chunks.
        devices: among which the model is divided, if it is.
        shard, offload: as in `conf/launch/`.
        adapters: which learn in the language model's place, if any do.

    Raises:
        InputError: the model's config is not to be had, or nothing is left to learn.
    """
    config = outline(model)
    dtype = getattr(torch, model.get("dtype") or "float32")
    compute = torch.bfloat16 if bf16 else dtype
    with torch.device("meta"):
        whole = AutoModelForImageTextToText.from_config(config, dtype=dtype).train()
        train_parts(whole, rates)
        packed = unpacked = 0
        if adapters is not None:
            under = [whole.get_submodule(name).weight for name in adapted_layers(whole)]
            with_adapters(whole, replace(adapters, bits=None), rates)  # into `whole` itself
            if adapters.bits is not None:
                packed = sum(weight.nbytes - bytes_in_four_bits(weight) for weight in under)
                unpacked = max(weight.numel() for weight in under) * compute.itemsize
    parameters = {name: sum(p.numel() for p in members) for name, members in parts_of(whole).items()}
    learning = [parameter for parameter in whole.parameters() if parameter.requires_grad]
    trainable = sum(parameter.numel() for parameter in learning)
    weights = sum(parameter.nbytes for parameter in whole.parameters()) - packed
    gradients = sum(parameter.nbytes for parameter in learning)
    optimizer = 2 * gradients
    whole.to(compute)  # kept numbers are of the type that autocast computes in
    activations, one_layer = kept_of_a_step(whole, rates, batch_size, tokens, checkpointing)
    # autocast keeps a copy of what it casts until the backward pass is over
    if bf16 and dtype != torch.bfloat16 and shard is None:
        activations += trainable * torch.bfloat16.itemsize
    logits = LOGITS_HELD[device] * 4
    forward = backward = 0
    if shard is not None:
        layers = [list(layer.parameters()) for layer in decoder_layers(whole)]
        forward, backward = gathered(whole, layers, shard, compute)
        weights, gradients, optimizer = (math.ceil(share / devices) for share in (weights, gradients, optimizer))
    # the loss's logits are gone when the backward pass begins, in which gradients take the place of activations
    before, new = (0, gradients) if accumulation == 1 else (gradients, 0)
    on_cpu = weights + gradients + optimizer if offload else 0
    if offload:
        before = new = 0
    peak = before + max(forward + activations + logits, backward + max(activations, new) + one_layer)
    peak += unpacked + (0 if offload else weights + optimizer)
    return Plan(
        parameters=parameters,
        trainable=trainable,
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        logits=logits,
        gathered=max(forward, backward),
        unpacked=unpacked,
        on_cpu=on_cpu,
        peak=peak,
        tokens=tokens,
    )


def bytes_in_four_bits(weight: torch.Tensor) -> int:
    """What a weight takes as `cal_cli.training.quantized` keeps it: NF4 and a scale of eight bits for each 64 numbers.

    Of the scales again 256 share one in float32 (Dettmers et al. 2023, double quantization).
    """
    scales = math.ceil(weight.numel() / 64)
    return math.ceil(weight.numel() / 2) + scales + 4 * math.ceil(scales / 256)


def gathered(model: Any, layers: list[list[Any]], shard: str, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of parameters and gradients that a device has whole, in the forward and in the backward pass.

    Args:
        model: to be divided as `cal_cli.training.sharding.shard` does.
        layers: the parameters of each of its decoder's layers.
        shard: as in `conf/launch/`.
        dtype: in which parameters are gathered.
    """

    def size(parameters: Iterable[Any], learning: bool = False) -> int:
        return sum(p.numel() * dtype.itemsize for p in parameters if p.requires_grad or not learning)

    within = [parameter for layer in layers for parameter in layer]
    rest, rest_learning = (size(model.parameters(), kind) - size(within, kind) for kind in (False, True))
    # of the layers all, or the one at work and the next
    held = size(within) if shard == "gradients" else 2 * max(size(layer) for layer in layers)
    # a layer's gradients, and the copy of them that is summed over the processes
    leaving = 2 * max(size(layer, learning=True) for layer in layers)
    return rest + held, rest + held + rest_learning + leaving


def kept_of_a_step(
    model: Any, rates: dict[str, float], batch_size: int, tokens: int, checkpointing: bool
) -> tuple[int, int]:
    """Bytes that the backward pass finds kept, and those that it makes again of one layer; see `plan_memory`.

    Args:
        model: on the meta device; its tensors become the mode's.
    """
    held = os.environ.get("TRANSFORMERS_DISABLE_TORCH_CHECK")
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # checks of values, of which there are none
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # which the meta device's are
            model.to_empty(device="cpu")
            activations = sum(kept(run, model) for run in passes(model, rates, batch_size, tokens))
            if not checkpointing:
                return activations, 0
            # kept are the layers' inputs; in the backward pass one layer is whole, computed again
            one_layer = activations // model.config.get_text_config().num_hidden_layers
            checkpoint_activations(model)
            return sum(kept(run, model) for run in passes(model, rates, batch_size, tokens)), one_layer
    finally:
        if held is None:
            del os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"]
        else:
            os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = held


def passes(model: Any, rates: dict[str, float], batch_size: int, tokens: int) -> Iterator[Callable[[], Any]]:
    """The forward passes that a step keeps something of: the decoder's, and the vision tower's where it learns."""
    decoder, width = model.get_decoder(), model.config.get_text_config().hidden_size
    kind = next(model.parameters()).dtype
    learns = any(parameter.requires_grad for parameter in model.parameters())
    embeddings = torch.empty(batch_size, tokens, width, dtype=kind, requires_grad=learns)
    mask = torch.ones(batch_size, tokens, dtype=torch.int64)
    yield lambda: decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
    vision = model.get_encoder(modality="image")
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    if vision is model or not isinstance(side, int) or rates.get("vision_tower", 1.0) == 0:
        return
    grid = getattr(model.config, "image_grid_pinpoints", None)
    tiles = 1 + max((rows // side) * (columns // side) for rows, columns in grid) if grid else 1
    pixels = torch.empty(batch_size * tiles, 3, side, side, dtype=kind)
    yield lambda: vision(pixels).last_hidden_state


def kept(run: Callable[[], Any], model: Any) -> int:
    """Bytes that autograd keeps of a forward pass, the model's own parameters left out."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # held, so that no other takes its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total


def tell(plan: Plan, samples: int | None, epochs: float, max_steps: int, step_samples: int, console: Console) -> None:
    """Print a plan.

    Args:
        plan: of one device.
        samples: of the data; None where it is not here.
        epochs, max_steps: as in the run's config.
        step_samples: samples a step on all devices.
        console: where to.
    """
    table = Table(title="what a device needs", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("GB", justify="right")
    for name in (
        "weights",
        "gradients",
        "optimizer",
        "gathered",
        "unpacked",
        "activations",
        "logits",
        "peak",
        "on_cpu",
    ):
        size = getattr(plan, name)
        if size or name not in ROWS:
            table.add_row(ROWS.get(name, name), f"{size / 1e9:,.2f}")
    console.print(table)
    total = sum(plan.parameters.values())
    parts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in plan.parameters.items())
    console.print(f"parameters: {total:,} ({parts}); trainable: {plan.trainable:,}")
    console.print(f"activations: of samples of {plan.tokens:,} tokens")
    if samples is None:
        console.print(f"samples a step: {step_samples}; the data are not here, so steps are not known")
        return
    steps = max_steps if max_steps > 0 else math.ceil(samples / step_samples) * epochs
    console.print(f"samples a step: {step_samples}; steps: {steps:,.0f}; samples: {samples:,} x {epochs:g} epochs")


def print_plan(config: DictConfig, settings: TrainConfig, devices: int, console: Console) -> None:
    """Tell what the run will need, without loading its weights; the data are read where they are here.

    Raises:
        InputError: a wrong value, or data that are here and cannot be read.
    """
    samples, tokens = None, settings.max_length or ASSUMED_LENGTH
    node: Any = OmegaConf.to_container(config.data)
    files = [source["path"] for source in node.get("sources", [node]) if "path" in source]
    if all(Path(path).exists() for path in files):
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
        devices,
        settings.launch.shard,
        settings.launch.offload,
        None if settings.peft is None else OmegaConf.to_object(settings.peft),  # type: ignore[arg-type]
    )
    step_samples = settings.batch_size * batches * devices
    tell(found, samples, settings.epochs, settings.max_steps, step_samples, console)
