"""Run by `python -m torch.distributed.run --nproc-per-node 2`: gradients of two processes, written for the tests."""

import copy
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from cal_cli import CALTrainer, ContrastiveAlignmentLoss, accept_objective
from cal_cli.data.collator import Collator
from cal_cli.toy.world import make_scenes
from tests.conftest import model_with_large_deltas

OBJECTIVES = {
    "cal": ContrastiveAlignmentLoss(normalization="sample"),
    "pmi": ContrastiveAlignmentLoss(score="logprob", alpha=0, window=9, normalization="sample"),
}


def model_and_samples():
    """The tiny model with weights that make large deltas, and eight samples: the last four have no image."""
    model, processor = model_with_large_deltas()
    shown = make_scenes(n=4, seed=3, text_only_share=0.0)
    words = make_scenes(n=4, seed=4, text_only_share=1.0)
    samples = [shown[i] for i in range(4)] + [words[i] for i in range(4)]
    return model, Collator(processor), samples


def sharded(model, mesh, tower=True):
    """FSDP2 with each layer, and the head, in a group of its own; those of the vision tower as asked for."""
    accept_objective(model)
    layers = [*model.model.language_model.layers, *(model.model.vision_tower.encoder.layers if tower else ())]
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model.lm_head, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def gradients(model):
    """Whole gradients by name; those of shards are gathered."""
    named = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if gradient is not None:
            whole = gradient.full_tensor() if isinstance(gradient, DTensor) else gradient
            named[name.removeprefix("module.")] = whole.clone()
    return named


def main(folder):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    model, collate, samples = model_and_samples()
    mixed = collate(samples[rank::2])  # images on either: FSDP gathers the vision tower's layers on both at once
    for name, objective in OBJECTIVES.items():
        ways = {
            "ddp": (
                DistributedDataParallel(accept_objective(copy.deepcopy(model)), find_unused_parameters=True),
                mixed,
            ),
            "ddp_text": (
                DistributedDataParallel(accept_objective(copy.deepcopy(model)), find_unused_parameters=True),
                collate(samples[4 * rank : 4 * rank + 4]),
            ),
            "fsdp": (sharded(copy.deepcopy(model), mesh), mixed),
            "fsdp_text": (sharded(copy.deepcopy(model), mesh, tower=False), collate(samples[4 * rank : 4 * rank + 4])),
        }
        checkpointed = copy.deepcopy(model).train()
        checkpointed.gradient_checkpointing_enable()
        ways["fsdp_checkpointing"] = sharded(checkpointed, mesh), mixed
        for way, (wrapped, batch) in ways.items():
            wrapped(objective=objective, batch=batch).loss.backward()
            found = gradients(wrapped)
            if rank == 0:
                torch.save(found, Path(folder) / f"{name}_{way}.pt")
    trainer = CALTrainer(
        model=copy.deepcopy(model),
        args=TrainingArguments(
            str(Path(folder) / "trainer"),
            max_steps=1,
            per_device_train_batch_size=4,
            optim="sgd",
            learning_rate=0.5,
            max_grad_norm=0.0,
            remove_unused_columns=False,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            use_cpu=True,
        ),
        objective=ContrastiveAlignmentLoss(),
        train_dataset=samples,
        data_collator=collate,
    )
    trainer.train()
    if rank == 0:
        torch.save(trainer.accelerator.unwrap_model(trainer.model).state_dict(), Path(folder) / "trained.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
