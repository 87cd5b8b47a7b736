"""Two processes over gloo against one: the same gradients, whatever wraps the model."""

import copy
import subprocess
import sys

import pytest
import torch

from cal_cli import ContrastiveAlignmentLoss
from tests.training.distributed import OBJECTIVES, model_and_samples


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder to which two processes wrote their gradients."""
    folder = tmp_path_factory.mktemp("distributed")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0"]
    command += ["--standalone", "-m", "tests.training.distributed", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("way", ["ddp", "ddp_text", "fsdp", "fsdp_text", "fsdp_checkpointing"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_two_processes_take_the_gradients_of_one(written, name, way):
    model, collate, samples = model_and_samples()
    OBJECTIVES[name](model, collate(samples)).loss.backward()
    expected = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    found = torch.load(written / f"{name}_{way}.pt")
    assert expected.keys() <= found.keys()
    for key, gradient in found.items():
        torch.testing.assert_close(
            gradient,
            expected.get(key, torch.zeros_like(gradient)),
            atol=1e-5,
            rtol=1e-4,
            msg=lambda m, k=key: f"{k}: {m}",
        )


@pytest.mark.slow
def test_the_trainer_takes_one_step_of_the_whole_batch(written):
    model, collate, samples = model_and_samples()
    expected = copy.deepcopy(model).train()
    ContrastiveAlignmentLoss()(expected, collate(samples)).loss.backward()
    torch.optim.SGD(expected.parameters(), lr=0.5).step()
    found = torch.load(written / "trained.pt")
    for key, parameter in expected.named_parameters():
        torch.testing.assert_close(found[key], parameter.detach(), atol=1e-5, rtol=0, msg=lambda m, k=key: f"{k}: {m}")
