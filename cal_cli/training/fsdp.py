"""Shard a model with torch's FSDP2: each decoder layer by itself, everything else as one group."""

from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard


def shard(model: Any, plugin: FullyShardedDataParallelPlugin) -> None:
    """Shard a model's parameters over the processes, in place.

    Each decoder layer is gathered by itself. The rest (vision tower, projector, embeddings, final norm, head) is
    gathered for the whole step, so that a process whose batch shows no image also has the vision tower, and an
    objective can call the head several times. accelerate's own policy puts norm and head into one group, which FSDP2
    frees after the first call; accelerate leaves a model that is already sharded as it is.

    Args:
        model: an image-text-to-text model.
        plugin: accelerate's settings: when to gather, offloading, and the dtypes to compute in.
    """
    offload: Any = plugin.cpu_offload
    if isinstance(offload, CPUOffloadPolicy) and not torch.cuda.is_available():  # pinned memory is for a device
        offload = CPUOffloadPolicy(pin_memory=False)
    options = {"offload_policy": offload, "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy()}
    for layer in find_decoder_layers(model):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, **options)


def find_decoder_layers(model: Any) -> list[nn.Module]:
    """Return the layers of the decoder, each of which `shard` gathers by itself."""
    decoder = model.get_decoder()
    return [module for module in decoder.modules() if type(module).__name__ in decoder._no_split_modules]
