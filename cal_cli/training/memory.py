"""The memory that a training step needs on each device, computed without weights or data.

Weights, gradients and AdamW's two moments follow from the parameters of a model on the meta device. What the backward
pass keeps is counted on that model with tensors without storage (`FakeTensorMode`), exactly as autograd would keep it.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForImageTextToText

from cal_cli.models.load import checkpoint_activations
from cal_cli.models.parts import AdapterConfig, Rates, add_adapters, find_adapted_layers, freeze_parts, group_parameters
from cal_cli.objective.head import LOGITS_HELD, find_decoder
from cal_cli.training.trainer import find_decoder_layers


@dataclass
class Plan:
    """What a run needs on each device; memory in bytes.

    If the model is sharded, weights, gradients and moments are the device's own share, and `gathered` is what it holds
    of the other shares while it computes. With offloading the shares are in the CPU's memory.
    """

    parameters: dict[str, int]  # by part
    trainable: int
    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int  # of a chunk
    gathered: int
    unpacked: int  # the largest weight, if weights are kept in four bits
    on_cpu: int
    peak: int
    tokens: int  # of the longest sample, image tokens included


def plan_memory(
    config: Any,
    dtype: torch.dtype,
    rates: Rates,
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
    """Plan a step of `batch_size` samples of equal length, with one process for each device.

    Args:
        config, dtype, rates: of the model, of its weights, and see `freeze_parts`.
        batch_size: samples of a device in one batch.
        tokens: length of each sample.
        checkpointing: gradient checkpointing.
        accumulation: batches of one step; above 1, gradients and activations are in memory together.
        bf16: compute in bf16 by autocast, with weights in their own dtype.
        device: `cpu` or `cuda`, for the size of the loss's chunks.
        devices: number of devices that the model is sharded over, if it is.
        shard, offload: as in `conf/launch/`.
        adapters: adapters that are trained instead of the language model.

    Raises InputError if nothing is left to train.
    """
    compute = torch.bfloat16 if bf16 else dtype
    model, packed, unpacked = make_planned_model(config, dtype, rates, adapters, compute)
    parameters = {name: sum(p.numel() for p in members) for name, members in group_parameters(model).items()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trainable = sum(parameter.numel() for parameter in trained)
    weights = sum(parameter.nbytes for parameter in model.parameters()) - packed
    gradients = sum(parameter.nbytes for parameter in trained)
    optimizer = 2 * gradients
    model.to(compute)  # activations have the dtype that autocast computes in
    activations, one_layer = count_activations(model, rates, batch_size, tokens, checkpointing)
    # autocast keeps a copy of the weights that it casts until the end of the backward pass
    if bf16 and dtype != torch.bfloat16 and shard is None:
        activations += trainable * torch.bfloat16.itemsize
    logits = LOGITS_HELD[device] * 4
    forward = backward = 0
    if shard is not None:
        layers = [list(layer.parameters()) for layer in find_decoder_layers(model)]
        forward, backward = count_gathered(model, layers, shard, compute)
        weights, gradients, optimizer = (math.ceil(share / devices) for share in (weights, gradients, optimizer))
    # the loss frees its logits before the backward pass, in which gradients replace activations
    before, new = (0, gradients) if accumulation == 1 else (gradients, 0)
    on_cpu = weights + gradients + optimizer if offload else 0
    if offload:
        before = new = 0
    peak = before + max(forward + activations + logits, backward + max(activations, new) + one_layer)
    peak += unpacked + (0 if offload else weights + optimizer)
    held = (weights, gradients, optimizer, activations, logits, max(forward, backward), unpacked, on_cpu, peak)
    return Plan(parameters, trainable, *held, tokens)


def make_planned_model(
    config: Any, dtype: torch.dtype, rates: Rates, adapters: AdapterConfig | None, compute: torch.dtype
) -> tuple[Any, int, int]:
    """Make the model on the meta device; also return the bytes that four bits save, and those of the largest weight."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype).train()
        rates_of_parts = freeze_parts(model, rates, adapters is not None)
        if adapters is None:
            return model, 0, 0
        under = [model.get_submodule(name).weight for name in find_adapted_layers(model)]
        add_adapters(model, replace(adapters, bits=None), rates_of_parts)  # modifies `model` itself
        if adapters.bits is None:
            return model, 0, 0
        packed = sum(weight.nbytes - count_four_bit_bytes(weight) for weight in under)
        return model, packed, max(weight.numel() for weight in under) * compute.itemsize


def count_four_bit_bytes(weight: torch.Tensor) -> int:
    """Return the bytes of a weight in NF4, with an eight-bit scale for each 64 numbers.

    256 of these scales share one in float32 (Dettmers et al. 2023, double quantization).
    """
    scales = math.ceil(weight.numel() / 64)
    return math.ceil(weight.numel() / 2) + scales + 4 * math.ceil(scales / 256)


def count_gathered(model: Any, layers: list[list[Any]], shard: str, dtype: torch.dtype) -> tuple[int, int]:
    """Count the bytes of unsharded parameters and gradients on a device, in the forward and in the backward pass.

    `layers` are the parameters of each layer of its decoder, `dtype` is that of the gathered parameters.
    """

    def size(parameters: Iterable[Any], trained: bool = False) -> int:
        return sum(p.numel() * dtype.itemsize for p in parameters if p.requires_grad or not trained)

    within = [parameter for layer in layers for parameter in layer]
    rest, rest_trained = (size(model.parameters(), kind) - size(within, kind) for kind in (False, True))
    # all layers, or the current one and the next
    held = size(within) if shard == "gradients" else 2 * max(size(layer) for layer in layers)
    # a layer's gradients, and their copy that is reduced over the processes
    leaving = 2 * max(size(layer, trained=True) for layer in layers)
    return rest + held, rest + held + rest_trained + leaving


def count_activations(model: Any, rates: Rates, batch_size: int, tokens: int, checkpointing: bool) -> tuple[int, int]:
    """Count the bytes kept for the backward pass, and those of one layer that it computes again.

    `model` is on the meta device; its tensors are converted to the mode's.
    """
    before = os.environ.get("TRANSFORMERS_DISABLE_TORCH_CHECK")
    os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = "1"  # it checks values, and there are none
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # the meta device's tensors
            model.to_empty(device="cpu")
            activations = sum(count_kept(run, model) for run in make_passes(model, rates, batch_size, tokens))
            if not checkpointing:
                return activations, 0
            # the layers' inputs are kept; in the backward pass one layer at a time is computed again
            one_layer = activations // model.config.get_text_config().num_hidden_layers
            checkpoint_activations(model)
            return sum(count_kept(run, model) for run in make_passes(model, rates, batch_size, tokens)), one_layer
    finally:
        if before is None:
            del os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"]
        else:
            os.environ["TRANSFORMERS_DISABLE_TORCH_CHECK"] = before


def make_passes(model: Any, rates: Rates, batch_size: int, tokens: int) -> Iterator[Callable[[], Any]]:
    """Yield the forward passes that keep activations: the decoder's, and the vision tower's if it is trained.

    MGM's mining is trained in both stages, over maps that are much larger than the image tokens.
    """
    decoder, width = find_decoder(model), model.config.get_text_config().hidden_size
    dtype = next(model.parameters()).dtype
    trained = any(parameter.requires_grad for parameter in model.parameters())
    embeddings = torch.empty(batch_size, tokens, width, dtype=dtype, requires_grad=trained)
    mask = torch.ones(batch_size, tokens, dtype=torch.int64)
    yield lambda: decoder(inputs_embeds=embeddings, attention_mask=mask, use_cache=False).last_hidden_state
    if hasattr(model.base_model, "mining"):
        size = model.config.aux_image_size
        large = torch.empty(batch_size, 3, size, size, dtype=dtype)
        yield lambda: torch.cat(model.base_model.get_image_features(large).pooler_output)
        return
    vision = model.get_encoder(modality="image")
    side = getattr(getattr(model.config, "vision_config", None), "image_size", None)
    if vision is model or not isinstance(side, int) or rates.get("vision_tower", 1.0) == 0:
        return
    grid = getattr(model.config, "image_grid_pinpoints", None)
    tiles = 1 + max((rows // side) * (columns // side) for rows, columns in grid) if grid else 1
    pixels = torch.empty(batch_size * tiles, 3, side, side, dtype=dtype)
    yield lambda: vision(pixels).last_hidden_state


def count_kept(run: Callable[[], Any], model: Any) -> int:
    """Count the bytes that autograd keeps of a forward pass, without the model's own parameters."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    storages: dict[int, Any] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            storages[storage._cdata] = storage  # kept alive, so that no other storage gets its number
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(storage.nbytes() for storage in storages.values())
    del result
    return total
