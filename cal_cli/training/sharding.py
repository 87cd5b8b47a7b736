"""A model divided among processes by torch's FSDP2: the decoder by layers, all else as one."""

from typing import Any

import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard


def shard(model: Any, plugin: FullyShardedDataParallelPlugin) -> None:
    """Divide a model's parameters among the processes, in place.

    Each layer of the decoder is gathered by itself. The rest (vision tower, projector, embeddings, final norm, head) is
    gathered for the whole step: a process whose batch shows no image has the vision tower at hand like the others, and
    the head may be asked as often as an objective needs. accelerate's own division puts norm and head into one group,
    which FSDP2 gives back after the first of several calls; a model that is divided already it leaves as it is.

    Args:
        model: an image-text-to-text model.
        plugin: accelerate's settings: when to gather, off-load, and the types to compute in.
    """
    offload: Any = plugin.cpu_offload
    if isinstance(offload, CPUOffloadPolicy) and not torch.cuda.is_available():  # pinned memory is for a device
        offload = CPUOffloadPolicy(pin_memory=False)
    options = {"offload_policy": offload, "mp_policy": plugin.mixed_precision_policy or MixedPrecisionPolicy()}
    for layer in decoder_layers(model):
        fully_shard(layer, reshard_after_forward=plugin.reshard_after_forward, **options)
    fully_shard(model, **options)


def decoder_layers(model: Any) -> list[nn.Module]:
    """The layers of the decoder, each of which `shard` gathers by itself."""
    decoder = model.get_decoder()
    return [module for module in decoder.modules() if type(module).__name__ in decoder._no_split_modules]
