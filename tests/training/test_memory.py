"""The plan of a run against what a run of the same shape really holds, and against known counts."""

import pytest
import torch
from torch.multiprocessing import start_processes
from transformers import ConvNextConfig, ConvNextModel

from cal_cli.bench.steps import measure_tensor_bytes
from cal_cli.models.load import ModelSource, checkpoint_activations
from cal_cli.models.mgm.source import MGMSource
from cal_cli.models.parts import AdapterConfig, add_adapters, freeze_parts
from cal_cli.objective import ContrastiveAlignmentLoss
from cal_cli.runtime.processes import find_free_port
from cal_cli.training.memory import plan_memory
from tests.cal import cal
from tests.models.parts import save_language_model, save_vision_tower
from tests.training.sharded_memory import measure, random_batch

ALL = {"language_model": 1.0, "projector": 1.0, "vision_tower": 1.0}
FROZEN_TOWER = {**ALL, "vision_tower": 0.0}
LORA = AdapterConfig(r=16, alpha=32, dropout=0.05, bits=None)
QLORA = AdapterConfig(r=16, alpha=32, dropout=0.05, bits=4)
PROJECTOR = {"language_model": 0.0, "projector": 1.0, "vision_tower": 0.0}


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    parts = {
        "language_model": save_language_model(folder / "llama", width=256, layers=6),
        "vision_tower": save_vision_tower(folder / "clip"),
    }
    return {"path": None, **parts, "projector": None, "image_aspect_ratio": "pad", "template": "v1", "dtype": "float32"}


@pytest.mark.parametrize(
    ("rates", "checkpointing", "accumulation", "adapters"),
    [
        (ALL, False, 1, None),
        (FROZEN_TOWER, True, 1, None),
        (PROJECTOR, False, 2, None),
        pytest.param(ALL, True, 2, None, marks=pytest.mark.slow),
        (FROZEN_TOWER, False, 1, LORA),
        pytest.param(FROZEN_TOWER, True, 1, QLORA, marks=pytest.mark.slow),
    ],
    ids=["all", "frozen tower, checkpointing", "projector, accumulation", "all, both", "LoRA", "QLoRA, checkpointing"],
)
def test_a_plan_is_within_15_percent_of_a_real_step(node, rates, checkpointing, accumulation, adapters):
    batch_size, tokens = 8, 256
    shape = batch_size, tokens, checkpointing, accumulation
    planned = plan_memory(
        ModelSource(**node).load_config(), torch.float32, rates, *shape, False, "cpu", adapters=adapters
    )

    model, processor = ModelSource(**node).load()
    freeze_parts(model.train(), rates)
    if checkpointing:
        checkpoint_activations(model)
    if adapters is not None:
        model = add_adapters(model, adapters, rates)
    assert sum(planned.parameters.values()) == counted(model)
    assert planned.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    batch = random_batch(processor.image_token_id, batch_size, tokens)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)
    objective = ContrastiveAlignmentLoss()

    def step():
        for _ in range(accumulation):
            objective(model, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # makes the optimizer's states
    states = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    assert planned.optimizer == pytest.approx(states, rel=0.01)
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    weights += sum(t.nbytes for state in scales_of(model) for t in (state.absmax, state.state2.absmax))
    assert planned.weights == pytest.approx(weights, rel=0.01)
    measured = weights + states + measure_tensor_bytes(step)
    assert planned.peak == pytest.approx(measured, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("crops", [1, 2])
@pytest.mark.parametrize("rates", [FROZEN_TOWER, PROJECTOR], ids=["frozen towers", "projector"])
def test_a_plan_of_mgm_counts_its_mining(node, crops, rates, tmp_path):
    torch.manual_seed(0)
    aux = {"hidden_sizes": [64, 96, 128, 192], "depths": [1, 1, 1, 1]}
    ConvNextModel(ConvNextConfig(**aux)).save_pretrained(tmp_path / "convnext")
    more = {"aux_vision_tower": str(tmp_path / "convnext"), "crops": crops, "aux_image_size": 256 * crops}
    source, tokens = MGMSource(**node, **more), 256
    planned = plan_memory(source.load_config(), torch.float32, rates, 4, tokens, False, 1, False, "cpu")
    model, processor = source.load()
    freeze_parts(model.train(), rates)
    assert sum(planned.parameters.values()) == counted(model)
    ids = torch.randint(300, 700, (4, tokens))
    ids[:, 1 : 1 + (16 if crops == 1 else 80)] = processor.image_token_id
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": torch.randn(4, 3, *[256 * crops] * 2),
    }
    batch["labels"] = ids.masked_fill(torch.arange(tokens) < 128, -100)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=False)

    def step():
        ContrastiveAlignmentLoss()(model, batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    states = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    weights = sum(t.nbytes for t in (*model.parameters(), *model.buffers()))
    assert planned.peak == pytest.approx(weights + states + measure_tensor_bytes(step), rel=0.15)


def counted(model):
    """Parameters, of two in a byte both."""
    return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())


def scales_of(model):
    """What says how the weights of four bits are to be read."""
    return [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "checkpointing", "accumulation"), [(None, False, 1), ("gradients", False, 2), ("parameters", True, 2)]
)
def test_the_plan_of_a_divided_model_is_within_15_percent_of_what_its_processes_take(
    tmp_path, monkeypatch, way, checkpointing, accumulation
):
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what torch frees goes back to the system at once
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    parts = {
        "language_model": save_language_model(tmp_path / "llama", width=768, layers=8),
        "vision_tower": save_vision_tower(tmp_path / "clip"),
    }
    node = {"path": None, **parts, "projector": None, "image_aspect_ratio": "pad", "template": "v1", "dtype": "float32"}
    shape = node, ALL, 4, 192, checkpointing, accumulation
    config = ModelSource(**node).load_config()
    planned = plan_memory(config, torch.float32, *shape[1:], bf16=False, device="cpu", devices=2, shard=way)
    start_processes(measure, (2, find_free_port(), *shape, way, str(tmp_path)), nprocs=2, start_method="spawn")
    measured = max(int((tmp_path / str(rank)).read_text()) for rank in range(2))
    assert planned.peak == pytest.approx(measured, rel=0.15)


def test_a_divided_model_s_shares_and_off_load(node):
    def plan(**more):
        config = ModelSource(**node).load_config()
        return plan_memory(config, torch.float32, ALL, 8, 256, False, 1, False, "cpu", **more)

    whole = plan()
    assert whole.gathered == whole.on_cpu == 0
    halves = plan(devices=2, shard="parameters")
    for name in ("weights", "gradients", "optimizer"):
        assert getattr(halves, name) == pytest.approx(getattr(whole, name) / 2, abs=1)
    zero2 = plan(devices=2, shard="gradients")
    assert zero2.gathered - halves.gathered == pytest.approx((6 - 2) / 6 * layer_bytes(node), rel=1e-6)
    away = plan(devices=2, shard="parameters", offload=True)
    assert away.on_cpu == halves.weights + halves.gradients + halves.optimizer
    assert away.peak < halves.peak


def layer_bytes(node):
    """Of all layers of the decoder, written out: four projections, three of the perceptron, two norms."""
    width, middle = 256, 384
    return 6 * 4 * (4 * width * width + 3 * width * middle + 2 * width)


def test_the_processor_without_the_weights_is_the_model_s(node):
    _, whole = ModelSource(**node).load()
    alone = ModelSource(**node).load_processor()
    assert alone.chat_template == whole.chat_template and alone.image_token_id == whole.image_token_id
    assert alone.image_processor.to_dict() == whole.image_processor.to_dict()
    assert alone.tokenizer.get_vocab() == whole.tokenizer.get_vocab()


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        ("llava7b", "7,063,427,072"),
        pytest.param("llava13b", "13,351,494,656", marks=pytest.mark.slow),
        pytest.param("llava_next7b", "7,063,431,168", marks=pytest.mark.slow),
        ("llava_next13b", "13,351,499,776"),
    ],
)
def test_the_paper_s_experiments_are_planned_without_weights_data_or_network(model, parameters, tmp_path):
    told = cal("train", f"model={model}", "plan=true", folder=tmp_path).stdout
    assert f"parameters: {parameters} (" in told
    assert "samples per step: 128; the data are not on this machine" in told
    assert not list(tmp_path.glob("runs/train/*/*/config.yaml"))


def test_the_default_is_planned_from_its_data(tmp_path):
    told = cal("train", "plan=true", "data.n=480", "epochs=2", folder=tmp_path).stdout
    assert "samples per step: 48; steps: 20; samples: 480 x 2 epochs" in told
    result = cal("train", "model=hf", "model.path=nobody/nothing", "plan=true", folder=tmp_path, check=False)
    assert result.returncode == 2 and "run `hf download nobody/nothing`" in result.stderr
