"""Each weight rule against its formula, written out naively on full logits, and the likelihood that it comes from."""

import copy
import math

import datasets
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from trl import SFTConfig, SFTTrainer

from cal_cli.objective import RuleLoss
from cal_cli.objective.rules import MismatchPosterior, ProbabilityPower, ProbabilityRatio, TokenScores
from cal_cli.toy.scenes import make_scenes
from tests.objective.naive import naive_logits
from tests.objective.test_loss import hard_batch  # noqa: F401 (a fixture)

EPSILON = 1e-6


def naive_weights(rule, p, q, rows):
    """The weights of tokens by the probability of each with and without the image, in Python."""
    p, q = p.double().tolist(), q.double().tolist()
    if isinstance(rule, ProbabilityPower):
        return [one**rule.q for one in p]
    if isinstance(rule, ProbabilityRatio):
        return [min(one / other, rule.upper) for one, other in zip(p, q, strict=True)]
    rho, r = rule.rho, rule.r
    found = []
    for place, row in enumerate(rows):
        same = [other for other in range(len(p)) if rows[other] == row]
        matched = math.prod(((1 - r) * p[n] / q[n] + r) ** (1 / rule.temperature) for n in same)
        sample = (1 - rho) * matched / ((1 - rho) * matched + rho)
        token = (1 - r) * p[place] / ((1 - r) * p[place] + r * q[place])
        found.append(sample * token)
    return found


RULES = [
    ProbabilityPower(q=1.0),
    ProbabilityPower(q=0.7),
    ProbabilityRatio(upper=5.0),
    MismatchPosterior(rho=0.3, r=0.05, estimated=False),
    MismatchPosterior(rho=0.5, r=0.0, estimated=False),
    MismatchPosterior(rho=0.0, r=0.2, estimated=False),
    MismatchPosterior(rho=0.3, r=0.05, temperature=3.0, estimated=False),
]


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("normalization", ["batch", "tokens"])
def test_the_loss_and_its_gradients_are_those_of_the_formula(model, hard_batch, rule, window, normalization):  # noqa: F811
    labels = hard_batch["labels"]
    supervised = labels[:, 1:] != -100
    with_image, without_image = naive_logits(model, hard_batch)
    target = labels[:, 1:].clamp_min(0)[..., None]
    p, q = (
        logits[:, :-1].softmax(-1).gather(2, target)[..., 0][supervised].detach()
        for logits in (with_image, without_image)
    )
    rows = supervised.nonzero()[:, 0].tolist()
    shown = (hard_batch["input_ids"] == model.config.image_token_id).any(1)
    weights = naive_weights(rule, p, q, rows)
    if rule.contrasts:
        weights = [weight if shown[row] else 1.0 for weight, row in zip(weights, rows, strict=True)]
    pooled = []
    for place, row in enumerate(rows):
        near = range(max(0, place - window // 2), min(len(rows), place + window // 2 + 1))
        near = [weights[n] for n in near if rows[n] == row]
        pooled.append(sum(near) / len(near))
    pooled = torch.tensor(pooled, dtype=torch.float32)
    cross_entropy = F.cross_entropy(
        with_image[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="none"
    ).view(supervised.shape)[supervised]
    expected = (cross_entropy * pooled).sum() / (pooled.sum() + EPSILON if normalization == "batch" else len(rows))
    model.zero_grad()
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = RuleLoss(rule, window=window, normalization=normalization)(model, hard_batch)
    output.loss.backward()
    torch.testing.assert_close(output.weights, pooled, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-4)
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(
                parameter.grad, gradients[name], atol=1e-5, rtol=1e-3, msg=lambda m, n=name: f"{n}: {m}"
            )
    model.zero_grad()


@given(
    st.lists(st.tuples(st.floats(-4, 4), st.floats(-4, 4), st.integers(0, 2)), min_size=1, max_size=8),
    st.floats(0.01, 0.9),
    st.floats(0.01, 0.9),
)
def test_the_posterior_is_the_gradient_of_the_mixture_s_likelihood(tokens, rho, r):
    logits = torch.tensor([one[0] for one in tokens], dtype=torch.float64, requires_grad=True)
    log_p, log_q = F.logsigmoid(logits), F.logsigmoid(torch.tensor([one[1] for one in tokens], dtype=torch.float64))
    rows = torch.tensor([one[2] for one in tokens])
    loss = torch.zeros((), dtype=torch.float64)
    for row in rows.unique():
        p, q = log_p[rows == row].exp(), log_q[rows == row].exp()
        loss = loss - ((1 - rho) * ((1 - r) * p + r * q).prod() + rho * q.prod()).log()
    (expected,) = torch.autograd.grad(loss, logits, retain_graph=True)
    with torch.no_grad():
        weights = MismatchPosterior(rho=rho, r=r, estimated=False)(TokenScores(log_p, log_q, rows))
    (found,) = torch.autograd.grad((-log_p * weights).sum(), logits)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)


@given(
    st.lists(st.tuples(st.floats(-60, 0), st.floats(-60, 0), st.integers(0, 3)), min_size=1, max_size=20),
    st.sampled_from(RULES),
)
def test_weights_are_finite_and_within_their_bounds(tokens, rule):
    with_image, without_image = (torch.tensor([one[n] for one in tokens]) for n in (0, 1))
    weights = rule(TokenScores(with_image, without_image, torch.tensor([one[2] for one in tokens])))
    top = rule.upper if isinstance(rule, ProbabilityRatio) else 1.0
    assert torch.isfinite(weights).all() and (weights >= 0).all() and (weights <= top + 1e-4).all()


def test_a_neutral_text_keeps_its_weight():
    scores = TokenScores(torch.zeros(4), torch.zeros(4), torch.tensor([0, 0, 1, 1]))
    assert torch.equal(ProbabilityRatio()(scores), torch.ones(4))
    torch.testing.assert_close(
        MismatchPosterior(rho=0.3, r=0.05, estimated=False)(scores), torch.full((4,), 0.95 * 0.7)
    )


def draw_mixture(rho, r, samples=400, words=6):
    """Log-probabilities of texts of which a share belongs to other pictures, and of the others some words do not."""
    generator = torch.Generator().manual_seed(0)
    mismatched = torch.rand(samples, 1, generator=generator) < rho
    independent = mismatched | (torch.rand(samples, words, generator=generator) < r)
    # two words are possible, one of which the picture makes probable
    probable = torch.where(independent, torch.rand(samples, words, generator=generator) < 0.5, True)
    probable = torch.where(independent, probable, torch.rand(samples, words, generator=generator) < 0.9)
    with_image = torch.where(probable, 0.9, 0.1).log().flatten()
    rows = torch.arange(samples).repeat_interleave(words)
    return TokenScores(with_image, torch.full_like(with_image, 0.5).log(), rows)


@pytest.mark.parametrize(("rho", "r"), [(0.0, 0.0), (0.3, 0.0), (0.5, 0.0), (0.3, 0.2)])
def test_the_estimates_find_the_shares(rho, r):
    scores, rule = draw_mixture(rho, r), MismatchPosterior(r=0.05 if r else 0.0)
    for _ in range(600):
        rule = rule.learn(rule.measure(scores))
    assert rule.rho == pytest.approx(rho, abs=0.06)
    assert rule.r == pytest.approx(r, abs=0.06)
    halves = [scores[:1200], scores[1200:]]
    whole = MismatchPosterior().measure(scores)
    torch.testing.assert_close(sum(MismatchPosterior().measure(half) for half in halves), whole)


def test_a_model_that_does_not_use_its_images_keeps_plain_cross_entropy():
    hurt = TokenScores(torch.full((40,), -3.0), torch.full((40,), -1.0), torch.arange(40) // 4)
    rule = MismatchPosterior(rho=0.1, r=0.05)
    for _ in range(200):
        assert torch.equal(rule(hurt), torch.ones(40))
        rule = rule.learn(rule.measure(hurt))
    assert (rule.rho, rule.r) == (0.1, 0.05)
    aligned = draw_mixture(0.3, 0.2)
    for _ in range(600):
        rule = rule.learn(rule.measure(aligned))
    assert rule.rho == pytest.approx(0.3, abs=0.06) and rule(aligned).min() < 0.1
    assert MismatchPosterior(estimated=False).measure(hurt) is None
    assert rule.restore(rule.estimates) == rule


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ProbabilityPower(q=-1), "at least 0"),
        (lambda: ProbabilityRatio(upper=0), "above 0"),
        (lambda: MismatchPosterior(rho=1.0), "below 1"),
        (lambda: MismatchPosterior(r=-0.1), "at least 0"),
        (lambda: MismatchPosterior(temperature=0), "above 0"),
        (lambda: MismatchPosterior(momentum=1.0), "below 1"),
        (lambda: RuleLoss(ProbabilityPower(), contrast="no_image"), "has no effect: ProbabilityPower reads no score"),
        (lambda: RuleLoss(ProbabilityRatio(), contrast="none"), "allowed are no_image"),
        (lambda: RuleLoss(ProbabilityRatio(), sigma=2.0), "it needs contrast=blur"),
        (lambda: RuleLoss(ProbabilityRatio(), window=2), "positive odd number"),
        (lambda: RuleLoss(ProbabilityRatio(), normalization="mean"), "allowed are batch, tokens"),
    ],
)
def test_options_that_do_not_fit_are_refused(make, said):
    with pytest.raises(ValueError, match=said):
        make()


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
