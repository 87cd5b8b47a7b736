"""What many tests share: a model of random weights, its processor, and batches of the shipped world."""

import gc
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import pytest
import torch

from cal_cli.data.collator import Collator
from cal_cli.toy.model import make_random_model
from cal_cli.toy.world import make_scenes


def pytest_collection_finish():
    """Leave what has been imported out of all later searches for garbage."""
    gc.freeze()


def model_with_large_deltas():
    """The tiny architecture with weights large enough that its logits and deltas are far from 0, and its processor."""
    model, processor = make_random_model(seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model, processor


@pytest.fixture(scope="session")
def random_model():
    return model_with_large_deltas()


@pytest.fixture
def model(random_model):
    """The random model with clean gradients, all of it trained."""
    random_model[0].requires_grad_(True).zero_grad()
    return random_model[0]


@pytest.fixture(scope="session")
def processor(random_model):
    return random_model[1]


@pytest.fixture(scope="session")
def world():
    """Twelve samples of the shipped world: with and without a picture, captions and questions."""
    return make_scenes(n=12, seed=3, text_only_share=0.3)


@pytest.fixture
def batch(world, processor):
    """The twelve samples as one padded batch of unequal lengths."""
    return Collator(processor)([world[index] for index in range(len(world))])
