"""Losses made of a rule: values and gradients against the formula on full logits, whatever is composed."""

import copy
import itertools
import math

import datasets
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from trl import SFTConfig, SFTTrainer

from cal_cli.objective import RuleLoss, head
from cal_cli.objective.rules import (
    ClampedDifference,
    GivenWeights,
    MismatchPosterior,
    ProbabilityPower,
    ProbabilityRatio,
    TextImprobability,
    TopExcess,
    VisualDependence,
    VisualInformationGain,
    WeightRule,
)
from cal_cli.toy.world import make_scenes
from tests.objective.naive import naive_logits
from tests.objective.rules.naive import naive_weights
from tests.objective.rules.test_rules import NAMES, RULES
from tests.objective.test_loss import hard_batch, make_batch, turns  # noqa: F401 (a fixture)

EPSILON = 1e-6


def naive_rule_loss(model, batch, rule, window, normalization):
    """Loss and pooled weights, with Python loops over samples and tokens."""
    labels = batch["labels"]
    supervised = labels[:, 1:] != -100
    logits = naive_logits(model, {key: value for key, value in batch.items() if key != "loss_weights"})
    target = labels[:, 1:].clamp_min(0)[..., None]
    p, q = (one[:, :-1].softmax(-1).gather(2, target)[..., 0][supervised].detach() for one in logits)
    rows = supervised.nonzero()[:, 0].tolist()
    has_image = (batch["input_ids"] == model.config.image_token_id).any(1).tolist()
    given = batch["loss_weights"][:, 1:][supervised].tolist()
    chosen = [n for n, row in enumerate(rows) if has_image[row] or not rule.contrasts]
    numbers = [[values[n] for n in chosen] for values in (p.double().tolist(), q.double().tolist(), given)]
    weights = [1.0] * len(rows)
    for place, weight in zip(chosen, naive_weights(rule, *numbers, [rows[n] for n in chosen]), strict=True):
        weights[place] = weight
    pooled = []
    for place, row in enumerate(rows):
        near = range(max(0, place - window // 2), min(len(rows), place + window // 2 + 1))
        near = [weights[n] for n in near if rows[n] == row]
        pooled.append(sum(near) / len(near))
    pooled = torch.tensor(pooled, dtype=torch.float32)
    cross_entropy = F.cross_entropy(
        logits[0][:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    ).view(supervised.shape)[supervised]
    if normalization == "batch":
        return (cross_entropy * pooled).sum() / (pooled.sum() + EPSILON), pooled
    if normalization == "tokens":
        return (cross_entropy * pooled).sum() / len(rows), pooled
    samples = [torch.tensor([n for n, one in enumerate(rows) if one == row]) for row in sorted(set(rows))]
    means = [(cross_entropy[n] * pooled[n]).sum() / (pooled[n].sum() + EPSILON) for n in samples]
    sizes = [len(n) if normalization == "length" else 1 for n in samples]
    return sum(m * size for m, size in zip(means, sizes, strict=True)) / sum(sizes), pooled


def gradients_of(model, loss):
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture
def weighted_batch(hard_batch):  # noqa: F811
    """The hard batch, with sentences and with weights of its own."""
    weights = torch.rand(hard_batch["labels"].shape, generator=torch.Generator().manual_seed(0)) * 2
    return {**hard_batch, "loss_weights": weights}


# logits held at a time: all; one sample at least, so that longer ones are computed twice; a single token
@pytest.mark.parametrize("held", [None, 8, 1])
@pytest.mark.parametrize("rule", RULES, ids=NAMES)
def test_the_loss_and_its_gradients_are_those_of_the_formula(model, weighted_batch, rule, held, monkeypatch):
    vocabulary = model.get_output_embeddings().out_features
    if held is not None:
        monkeypatch.setitem(head.LOGITS_HELD, "cpu", held * vocabulary)
    for window, normalization in itertools.product((1, 3), ("batch", "tokens", "sample", "length")):
        expected, weights = naive_rule_loss(model, weighted_batch, rule, window, normalization)
        expected_gradients = gradients_of(model, expected)
        contrast = "no_image" if rule.contrasts else None
        loss = RuleLoss(rule, contrast, window=window, normalization=normalization)
        output = loss(model, weighted_batch)
        torch.testing.assert_close(output.weights, weights, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-4)
        found = gradients_of(model, output.loss)
        assert found.keys() == expected_gradients.keys()
        for name, value in expected_gradients.items():
            torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rule", [ProbabilityPower(), MismatchPosterior(rho=0.3, estimated=False)], ids=str)
def test_a_head_that_is_not_linear_gives_the_same(model, hard_batch, rule):  # noqa: F811
    expected = RuleLoss(rule)(model, hard_batch)
    expected_gradients = gradients_of(model, expected.loss)
    own = model.lm_head
    assert head.LanguageHead(own).is_linear
    wrapped = Wrapped(own)
    model.lm_head = wrapped
    try:
        output = RuleLoss(rule)(model, hard_batch)
        assert not head.LanguageHead(wrapped).is_linear
        gradients = gradients_of(model, output.loss)
    finally:
        model.lm_head = own
    torch.testing.assert_close(output.loss, expected.loss)
    torch.testing.assert_close(output.weights, expected.weights)
    name = "model.language_model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(gradients[name], expected_gradients[name])


class Wrapped(nn.Module):
    """A head that is no `nn.Linear`, as LoRA's."""

    def __init__(self, linear):
        super().__init__()
        self.linear, self.out_features = linear, linear.out_features

    @property
    def weight(self):
        return self.linear.weight

    def forward(self, hidden):
        return self.linear(hidden)


def test_shuffled_weights_have_the_same_histogram_and_another_order(model, hard_batch):  # noqa: F811
    rule = ClampedDifference("logit", 0.0, 5.0)
    for pooling in ("answer", "flat"):
        plain = RuleLoss(rule, window=3, pooling=pooling)(model, hard_batch).weights
        torch.manual_seed(0)
        one, other = (RuleLoss(rule, window=3, pooling=pooling, shuffled=True)(model, hard_batch) for _ in range(2))
        assert torch.equal(one.weights.sort().values, plain.sort().values)
        assert not torch.equal(one.weights, plain) and not torch.equal(one.weights, other.weights)


def test_a_rule_of_the_user_s_reads_the_entropy(model, hard_batch):  # noqa: F811
    class Confident(WeightRule):
        reads = ("entropy",)

        def __call__(self, scores):
            return (-scores.entropy).exp()

    labels = hard_batch["labels"][:, 1:]
    logits, _ = naive_logits(model, hard_batch)
    probabilities = logits[:, :-1].softmax(-1)[labels != -100]
    expected = (probabilities * probabilities.log()).sum(-1).exp()
    torch.testing.assert_close(RuleLoss(Confident())(model, hard_batch).weights, expected, atol=1e-5, rtol=1e-4)


def test_dependence_keeps_the_tokens_of_a_text_with_the_largest_divergence(model, hard_batch):  # noqa: F811
    output = RuleLoss(VisualDependence(share=0.5), contrast="no_image")(model, hard_batch)
    supervised = hard_batch["labels"][:, 1:] != -100
    shown, hidden = (logits[:, :-1].log_softmax(-1) for logits in naive_logits(model, hard_batch))
    divergence = F.kl_div(hidden, shown, reduction="none", log_target=True).sum(-1)
    for row, has_image in enumerate((hard_batch["input_ids"] == model.config.image_token_id).any(1)):
        own = divergence[row][supervised[row]]
        expected = own >= own.sort(descending=True).values[math.ceil(0.5 * len(own)) - 1]
        weights = output.weights[supervised.nonzero()[:, 0] == row]
        assert torch.equal(weights, expected.float() if has_image else torch.ones_like(own))
    with pytest.raises(ValueError, match="contrast=reference only has the labels' scores"):
        RuleLoss(VisualDependence(), contrast="reference")


def test_a_rule_that_is_computed_once_takes_its_weights_from_the_batch(model, weighted_batch):
    calls = []
    hook = model.model.language_model.register_forward_hook(lambda *anything: calls.append(1))
    output = RuleLoss(VisualInformationGain())(model, weighted_batch)
    hook.remove()
    assert len(calls) == 1 and output.delta is None
    supervised = weighted_batch["labels"][:, 1:] != -100
    assert torch.equal(output.weights, weighted_batch["loss_weights"][:, 1:][supervised])
    del weighted_batch["loss_weights"]
    for rule in (VisualInformationGain(), GivenWeights()):
        with pytest.raises(ValueError, match="reads loss_weights"):
            RuleLoss(rule)(model, weighted_batch)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RuleLoss(ProbabilityPower(), contrast="no_image"), "has no effect: ProbabilityPower reads no score"),
        (lambda: RuleLoss(ProbabilityRatio(), contrast="none"), "allowed are no_image"),
        (lambda: RuleLoss(ProbabilityRatio(), sigma=2.0), "it needs contrast=blur or contrast=cached"),
        (lambda: RuleLoss(ProbabilityRatio(), window=2), "positive odd number"),
        (lambda: RuleLoss(ProbabilityRatio(), normalization="mean"), "allowed are batch, tokens"),
        (lambda: RuleLoss(ProbabilityRatio(), pooling="mean"), "allowed are answer and flat"),
        (lambda: RuleLoss(TopExcess(), window=3, pooling="flat"), "use pooling=answer"),
        (lambda: RuleLoss(VisualInformationGain(), "cached"), "computed once before training"),
        (lambda: RuleLoss(ProbabilityRatio(), "cached", sigma=1.0, reference=object()), "exclude each other"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


def test_what_is_cached_follows_from_the_options():
    reference = object()
    for loss, condition in (
        (RuleLoss(ProbabilityRatio()), None),
        (RuleLoss(ProbabilityRatio(), "cached"), "no_image"),
        (RuleLoss(ProbabilityRatio(), "cached", sigma=1.0), "blur"),
        (RuleLoss(TextImprobability(), "cached"), "reference"),
        (RuleLoss(ProbabilityRatio(), "cached", reference=reference), "reference"),
        (RuleLoss(VisualInformationGain()), "blur"),
        (RuleLoss(GivenWeights()), None),
    ):
        found = loss.before_training
        assert (None if found is None else found.name) == condition


def test_no_second_pass_without_a_contrast(model, hard_batch, monkeypatch):  # noqa: F811
    calls = []
    hook = model.model.language_model.register_forward_hook(lambda *anything: calls.append(1))
    RuleLoss(ProbabilityPower())(model, hard_batch)
    assert len(calls) == 1
    RuleLoss(ProbabilityRatio())(model, hard_batch)
    assert len(calls) == 3
    hook.remove()


def test_dynamic_fine_tuning_is_trl_s(model, processor, tmp_path):
    scenes = make_scenes(n=6, seed=5, text_only_share=0.0)
    rows = [
        {
            "images": [scene["image"]],
            "prompt": [{"role": "user", "content": scene["conversations"][0]["value"].replace("<image>\n", "")}],
            "completion": [{"role": "assistant", "content": scene["conversations"][1]["value"]}],
        }
        for scene in (scenes[n] for n in range(6))
    ]
    arguments = SFTConfig(str(tmp_path), loss_type="dft", max_length=None, bf16=False, report_to="none", use_cpu=True)
    model = copy.deepcopy(model)  # the trainer changes it
    trainer = SFTTrainer(model, arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=processor)
    batch = trainer.data_collator(rows)
    expected = trainer.compute_loss(model, dict(batch))
    found = RuleLoss(ProbabilityPower(q=1.0), normalization="tokens")(model, batch)
    torch.testing.assert_close(found.loss, expected, atol=1e-5, rtol=1e-4)
    assert found.weights.max() < 1
