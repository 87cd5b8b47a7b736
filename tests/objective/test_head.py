"""The head in chunks against all logits at once: values, gradients, memory; and heads that are more than a product."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from cal_cli.objective import ContrastiveAlignmentLoss, contrast_logits
from cal_cli.objective import head as head_module
from cal_cli.objective.head import LanguageHead, find_head

SMALL = {
    "vocab_size": 60,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def problem(positions, width, vocabulary, bias, seed=0):
    torch.manual_seed(seed)
    module = nn.Linear(width, vocabulary, bias=bias)
    hidden = (2 * torch.randn(positions, width)).requires_grad_()
    return module, hidden, torch.randint(vocabulary, (positions,)), torch.rand(positions)


def naive(module, hidden, labels, coefficients, scale, softcap):
    logits = module(hidden) * scale
    if softcap:
        logits = softcap * torch.tanh(logits / softcap)
    cross_entropy = F.cross_entropy(logits, labels, reduction="none")
    return (coefficients * cross_entropy).sum(), cross_entropy, logits


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 12),
    st.integers(2, 90),
    st.booleans(),
    st.sampled_from([1.0, 0.25, 3.0]),
    st.sampled_from([None, 2.0, 30.0]),
    st.sampled_from([1, 64, 10**6]),
)
def test_chunks_equal_all_logits_gradients_included(positions, width, vocabulary, bias, scale, softcap, held):
    module, hidden, labels, coefficients = problem(positions, width, vocabulary, bias)
    expected, cross_entropy, logits = naive(module, hidden, labels, coefficients, scale, softcap)
    parameters = [hidden, *module.parameters()]
    gradients = torch.autograd.grad(2 * expected, parameters)
    before, head_module.LOGITS_HELD["cpu"] = head_module.LOGITS_HELD["cpu"], held
    try:
        head = LanguageHead(module, scale, softcap)
        loss, found = head.weighted_cross_entropy(hidden, labels, coefficients)
        ours = torch.autograd.grad(2 * loss, parameters)
        torch.testing.assert_close(head.label_logprobs(hidden, labels), -cross_entropy, atol=1e-5, rtol=1e-5)
    finally:
        head_module.LOGITS_HELD["cpu"] = before
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, cross_entropy, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        head.label_logits(hidden, labels), logits.gather(1, labels[:, None])[:, 0], atol=1e-5, rtol=1e-5
    )
    for one, other in zip(ours, gradients, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="this torch has no linear_cross_entropy")
def test_torch_s_own_fused_loss_agrees():
    module, hidden, labels, coefficients = problem(300, 16, 400, bias=True)
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=64)
    theirs = F.linear_cross_entropy(
        hidden, module.weight, labels, linear_bias=module.bias, reduction="none", options=options
    )
    parameters = [hidden, *module.parameters()]
    expected = torch.autograd.grad((coefficients * theirs).sum(), parameters)
    loss, found = LanguageHead(module).weighted_cross_entropy(hidden, labels, coefficients)
    torch.testing.assert_close(found, theirs.detach(), atol=1e-5, rtol=1e-5)
    for one, other in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation made."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.size = max(self.size, result.numel())
        return result


@pytest.mark.parametrize("positions", [600, 2400])
def test_no_tensor_of_positions_times_vocabulary_is_held(positions, monkeypatch):
    monkeypatch.setitem(head_module.LOGITS_HELD, "cpu", 2**16)
    module, hidden, labels, coefficients = problem(positions, 4, 5000, bias=False)
    with LargestTensor() as largest:
        loss, _ = LanguageHead(module).weighted_cross_entropy(hidden, labels, coefficients)
        loss.backward()
    assert largest.size <= 2**16


def test_bf16_is_as_close_as_all_logits_in_bf16():
    module, hidden, labels, coefficients = problem(200, 32, 300, bias=False)
    exact = torch.autograd.grad(naive(module, hidden, labels, coefficients, 1, None)[0], [module.weight])[0]
    module, hidden = module.bfloat16(), hidden.detach().bfloat16()
    logits = module(hidden).float()
    whole = torch.autograd.grad(
        (coefficients * F.cross_entropy(logits, labels, reduction="none")).sum(), [module.weight]
    )[0]
    loss, _ = LanguageHead(module).weighted_cross_entropy(hidden, labels, coefficients)
    assert loss.dtype == torch.float32
    ours = torch.autograd.grad(loss, [module.weight])[0]
    assert (ours.float() - exact).norm() <= 1.1 * (whole.float() - exact).norm()


def test_autocast_computes_in_its_own_dtype():
    module, hidden, labels, coefficients = problem(50, 16, 100, bias=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = (coefficients * F.cross_entropy(module(hidden).float(), labels, reduction="none")).sum()
        loss, _ = LanguageHead(module).weighted_cross_entropy(hidden, labels, coefficients)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-3)
    loss.backward()
    assert module.weight.grad.dtype == torch.float32


def test_going_backward_twice_is_refused():
    module, hidden, labels, coefficients = problem(5, 4, 6, bias=False)
    loss, _ = LanguageHead(module).weighted_cross_entropy(hidden, labels, coefficients)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="twice"):
        loss.backward()


@pytest.mark.parametrize(
    ("make", "scale", "softcap"),
    [
        (lambda: LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=True)), 1.0, None),
        (lambda: CohereForCausalLM(CohereConfig(**SMALL, logit_scale=0.0625)), 0.0625, None),
        (lambda: GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=8.0)), 1 / 8, None),
        (lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=30.0)), 1.0, 30.0),
    ],
)
def test_what_a_model_does_to_its_logits_is_found(make, scale, softcap):
    torch.manual_seed(0)
    model = make().eval()
    inputs = {"input_ids": torch.randint(3, 60, (2, 7))}
    with torch.no_grad():
        outputs = model.base_model(**inputs)
        found = find_head(model, inputs, outputs)
        assert (found.scale, found.softcap) == (pytest.approx(scale), softcap)
        labels = torch.randint(3, 60, (14,))
        logits = model(**inputs).logits.flatten(0, 1).gather(1, labels[:, None])[:, 0]
        torch.testing.assert_close(found.label_logits(outputs.last_hidden_state.flatten(0, 1), labels), logits)


def test_logits_changed_in_an_unknown_way_are_refused():
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            output.logits = output.logits.square()
            return output

    model = Odd(LlamaConfig(**SMALL))
    inputs = {"input_ids": torch.randint(3, 60, (2, 7))}
    with pytest.raises(ValueError, match="not supported"), torch.no_grad():
        find_head(model, inputs, model.base_model(**inputs))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora_trains_on_the_same_numbers(model, batch, targets):
    """The library's own forward under PEFT says what logits and gradients must be; a head may be adapted too."""
    import copy

    torch.manual_seed(0)
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(target_modules=targets, init_lora_weights=False))
    output = ContrastiveAlignmentLoss()(adapted, batch)
    output.loss.backward()
    found = {name: p.grad.clone() for name, p in adapted.named_parameters() if p.grad is not None}
    assert found and all("lora" in name for name in found)
    adapted.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits, labels = adapted(**inputs).logits[:, :-1], batch["labels"][:, 1:]
    kept = labels != -100
    cross_entropy = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none")[kept]
    ((output.weights * cross_entropy).sum() / output.weights.sum()).backward()
    for name, parameter in adapted.named_parameters():
        if name in found:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)
    raw = logits.gather(2, labels.clamp_min(0)[..., None])[..., 0][kept]
    torch.testing.assert_close(contrast_logits(adapted, batch).with_image, raw.detach(), atol=1e-5, rtol=1e-5)
