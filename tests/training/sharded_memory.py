"""One of the processes of a divided model: the memory that a step takes, measured from outside of torch."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin

from cal_cli import ContrastiveAlignmentLoss, accept_objective
from cal_cli.data.collator import IGNORED
from cal_cli.models.load import ModelSource, checkpoint_activations
from cal_cli.models.parts import freeze_parts
from cal_cli.training.trainer import shard


def resident(name: str) -> int:
    """Bytes of `VmRSS` or, since it was last reset, `VmHWM`."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def random_batch(image_token_id, batch_size, tokens):
    """Samples of one picture of 16 tokens, their last 40 tokens supervised."""
    ids = torch.randint(300, 500, (batch_size, tokens))
    ids[:, 3:19] = image_token_id
    labels = ids.clone()
    labels[:, :-40] = IGNORED
    pictures = torch.randn(batch_size, 3, 28, 28)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, "pixel_values": pictures}


def measure(rank, world, port, node, rates, batch_size, tokens, checkpointing, accumulation, way, folder):
    """Write the peak of the second step's memory, less what the process had before it built the model."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    dist.all_reduce(torch.ones(1 << 20))  # what the connection itself needs
    torch.randn(512, 512) @ torch.randn(512, 512)
    before = resident("VmRSS")
    model, processor = ModelSource(**node).load()
    freeze_parts(model.train(), rates)
    if checkpointing:
        checkpoint_activations(model)
    accept_objective(model)
    if way is not None:
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, reshard_after_forward=way == "parameters")
        shard(model, plugin)
    batch = random_batch(processor.image_token_id, batch_size, tokens)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        for _ in range(accumulation):  # gradients are divided after each batch, as `cal train` has it
            model(objective=ContrastiveAlignmentLoss(), batch=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    (Path(folder) / str(rank)).write_text(str(resident("VmHWM") - before))
    dist.barrier()
    dist.destroy_process_group()
