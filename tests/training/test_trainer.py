"""`CALTrainer` by itself: the library's own training loop with another loss."""

import copy
import math

import pytest
import torch
from transformers import Trainer, TrainingArguments

from cal_cli import CALTrainer, ContrastiveAlignmentLoss
from cal_cli.data.collator import Collator
from cal_cli.objective import NonFiniteLoss, RuleLoss
from cal_cli.objective.rules import MismatchPosterior
from cal_cli.toy.world import make_scenes


def arguments(folder, **options):
    options = {"max_steps": 3, "per_device_train_batch_size": 4, "logging_steps": 1, "seed": 0} | options
    return TrainingArguments(
        str(folder), report_to="none", disable_tqdm=True, save_strategy="no", remove_unused_columns=False, **options
    )


def trained(kind, model, processor, data, folder, objective=None, **options):
    """Weights after training a copy of the model, and the logged losses."""
    more = {"objective": objective} if objective else {}
    trainer = kind(
        model=copy.deepcopy(model),
        args=arguments(folder, **options),
        train_dataset=data,
        data_collator=Collator(processor),
        **more,
    )
    trainer.train()
    return trainer, [log["loss"] for log in trainer.state.log_history if "loss" in log]


def test_equal_bounds_train_as_the_library_s_trainer_does(model, processor, world, tmp_path):
    plain, losses = trained(Trainer, model, processor, world, tmp_path)
    ours, our_losses = trained(CALTrainer, model, processor, world, tmp_path, ContrastiveAlignmentLoss(alpha=1, beta=1))
    assert our_losses == pytest.approx(losses, abs=1e-4)
    for one, other in zip(plain.model.parameters(), ours.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


def test_one_step_is_the_loss_s_gradient_step(model, processor, world, tmp_path):
    objective = ContrastiveAlignmentLoss(normalization="sample")
    trainer, losses = trained(
        CALTrainer,
        model,
        processor,
        world,
        tmp_path,
        objective,
        max_steps=1,
        optim="sgd",
        learning_rate=0.5,
        per_device_train_batch_size=12,
        max_grad_norm=0.0,
    )
    expected = copy.deepcopy(model)
    expected.train()
    loss = objective(expected, Collator(processor)([world[i] for i in range(12)])).loss
    loss.backward()
    torch.optim.SGD(expected.parameters(), lr=0.5).step()
    assert losses[0] == pytest.approx(loss.item(), abs=1e-4)
    for one, other in zip(expected.parameters(), trainer.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("normalization", ["batch", "sample", "length"])
@pytest.mark.parametrize(("size", "count"), [(6, 2), (5, 3), (1, 12)])
def test_accumulated_batches_equal_one_batch(model, processor, world, tmp_path, normalization, size, count):
    objective = ContrastiveAlignmentLoss(normalization=normalization)
    few = [world[i] for i in range(12)]  # three batches of 5, 5 and 2: also when the last is smaller
    options = {"max_steps": 1, "optim": "sgd", "learning_rate": 0.5, "max_grad_norm": 1.0}
    found = [
        trained(
            CALTrainer,
            model,
            processor,
            few,
            tmp_path,
            objective,
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulated,
            **options,
        )
        for batch, accumulated in ((12, 1), (size, count))
    ]
    (whole, expected), (parts, losses) = found
    assert losses == pytest.approx(expected, abs=1e-5)
    assert parts.state.log_history[0]["grad_norm"] == pytest.approx(whole.state.log_history[0]["grad_norm"], rel=1e-4)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_estimates_are_those_of_the_whole_step(model, processor, world, tmp_path):
    few = [world[i] for i in range(12)]
    found = []
    for size, count in ((12, 1), (5, 3)):
        objective = RuleLoss(MismatchPosterior(momentum=0.1))
        options = {"max_steps": 2, "per_device_train_batch_size": size, "gradient_accumulation_steps": count}
        trainer, losses = trained(CALTrainer, model, processor, few, tmp_path, objective, **options)
        found.append((losses, objective.estimates))
        assert trainer.state.log_history[1]["rho"] == objective.estimates["rho"] != 0.1
    assert found[1][0] == pytest.approx(found[0][0], abs=1e-4)
    assert found[1][1] == pytest.approx(found[0][1], abs=1e-4)


def test_accumulated_batches_of_the_released_code_are_averaged(model, processor, world, tmp_path):
    expected = []

    class Recorded(ContrastiveAlignmentLoss):
        def __call__(self, model, batch):
            output = super().__call__(model, batch)
            expected.append(output.loss.item())
            return output

    few = [world[i] for i in range(12)]
    objective = Recorded(normalization="device_batch", pooling="flat")
    options = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 3}
    _, losses = trained(CALTrainer, model, processor, few, tmp_path, objective, **options)
    assert losses[0] == pytest.approx(sum(expected[:3]) / 3, abs=1e-5)


def test_text_alone_is_a_batch_where_the_projector_alone_learns(model, processor, tmp_path):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("projector" in name)
    words = make_scenes(n=8, text_only_share=1.0)
    trainer, losses = trained(CALTrainer, model, processor, words, tmp_path, max_steps=2)
    assert all(math.isfinite(loss) for loss in losses)
    for one, other in zip(model.parameters(), trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_logs_tell_the_weights_and_deltas_of_their_steps(model, processor, world, tmp_path):
    objective = ContrastiveAlignmentLoss()
    trainer, _ = trained(
        CALTrainer, model, processor, world, tmp_path, objective, max_steps=1, per_device_train_batch_size=12
    )
    output = objective(model, Collator(processor)([world[i] for i in range(12)]))
    log = trainer.state.log_history[0]
    assert log["weight_mean"] == pytest.approx(output.weights.mean().item(), abs=1e-4)
    assert log["delta_mean"] == pytest.approx(output.delta.mean().item(), abs=1e-4)
    assert log["share_at_alpha"] == pytest.approx((output.delta <= 1).float().mean().item(), abs=1e-4)
    assert log["share_at_beta"] == pytest.approx((output.delta >= 5).float().mean().item(), abs=1e-4)


def test_the_default_objective_is_the_paper_s(model, tmp_path):
    objective = CALTrainer(model=copy.deepcopy(model), args=arguments(tmp_path)).objective
    assert objective == ContrastiveAlignmentLoss("logit", 1.0, 5.0, 3, "batch", "answer")


def test_the_model_still_generates_and_computes_its_own_loss(model, processor, world, batch, tmp_path):
    trainer, _ = trained(CALTrainer, model, processor, world, tmp_path, ContrastiveAlignmentLoss(), max_steps=1)
    assert math.isfinite(trainer.model(**batch).loss.item())
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    assert trainer.model.generate(**inputs, max_new_tokens=2).shape[1] == batch["input_ids"].shape[1] + 2


def test_a_non_finite_loss_names_step_and_samples_and_touches_no_weight(model, processor, world, tmp_path):
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.lm_head.weight[5] = float("nan")
    before = broken.model.vision_tower.embeddings.patch_embedding.weight.clone()
    trainer = CALTrainer(
        model=broken, args=arguments(tmp_path), train_dataset=world, data_collator=Collator(processor, keep_ids=True)
    )
    with pytest.raises(NonFiniteLoss) as raised:
        trainer.train()
    assert raised.value.step == 0
    assert 0 < len(raised.value.samples) <= 4
    assert set(raised.value.samples) <= {entry["id"] for entry in world.entries}
    assert torch.equal(before, broken.model.vision_tower.embeddings.patch_embedding.weight)
