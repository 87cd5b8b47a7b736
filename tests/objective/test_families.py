"""Dropping the image's columns against masking them out at full length, family by family, and each family's head."""

import pytest
import torch
import torch.nn.functional as F

from cal_cli.objective import ContrastiveAlignmentLoss, contrast_logits
from tests.objective.families import FAMILIES, IMAGE, gemma3, llava, llava_next, make, mllama, paligemma, qwen3_vl

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ids = [family.__name__ for family in FAMILIES]


def logits_of(model, hidden):
    logits = model.lm_head(hidden).float()
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def masked_out(mask, columns):
    """A mask of any form with some columns masked out of attention."""
    if isinstance(mask, dict):
        return {name: masked_out(part, columns) for name, part in mask.items()}
    if mask is None:
        length = columns.shape[1]
        mask = torch.ones(len(columns), 1, length, length, dtype=torch.bool).tril()
    if mask.dim() == 2:
        return mask * ~columns
    return mask.masked_fill(columns[:, None, None], False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def naive_logits(model, batch):
    """Logits [batch, length, vocabulary] with the image, and without it: masked at full length by hand."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    given = {}
    decoder = model.get_decoder()
    hook = decoder.register_forward_pre_hook(lambda _, __, kwargs: given.update(kwargs), with_kwargs=True)
    with_image = model(**inputs, use_cache=False).logits
    hook.remove()
    with torch.no_grad():
        if model.config.model_type == "mllama":  # what the library computes when it is shown no picture
            text = {name: batch[name] for name in ("input_ids", "attention_mask")}
            return with_image, model(**text).logits
        given["attention_mask"] = masked_out(given["attention_mask"], batch["input_ids"] == IMAGE)
        return with_image, logits_of(model, decoder(**given).last_hidden_state)


@pytest.mark.parametrize("score", ["logit", "logprob"])
@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_dropping_equals_masking(family, score):
    model, batch = make(family)
    contrast = contrast_logits(model, batch, score)
    with torch.no_grad():
        logits = naive_logits(model, batch)
    supervised = batch["labels"][:, 1:] != -100
    target = batch["labels"][:, 1:].clamp_min(0)[..., None]
    if score == "logprob":
        logits = [part.log_softmax(-1) for part in logits]
    with_image, without_image = (part[:, :-1].gather(2, target)[..., 0][supervised] for part in logits)
    torch.testing.assert_close(contrast.with_image, with_image, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contrast.without_image, without_image, atol=1e-5, rtol=1e-5)
    assert contrast.delta.abs().max() > 0.3  # the comparison would be empty if the image changed nothing


@pytest.mark.parametrize("family", FAMILIES, ids=ids)
def test_loss_and_gradients_equal_those_of_all_logits(family):
    model, batch = make(family)
    output = ContrastiveAlignmentLoss()(model, batch)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs).logits[:, :-1].float()
    cross_entropy = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    cross_entropy = cross_entropy[batch["labels"][:, 1:] != -100]
    ((output.weights * cross_entropy).sum() / output.weights.sum()).backward()
    torch.testing.assert_close(output.cross_entropy, cross_entropy.detach(), atol=1e-5, rtol=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", [llava_next, qwen3_vl, paligemma, gemma3, mllama])
@pytest.mark.parametrize("checked", ["eager", "checkpointing"])
def test_eager_attention_and_checkpointing_change_nothing(family, checked):
    model, batch = make(family)
    expected = contrast_logits(model, batch).delta
    loss = ContrastiveAlignmentLoss()(model, batch).loss
    if checked == "eager":
        model.set_attn_implementation("eager")
    else:
        model.train()
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(contrast_logits(model, batch).delta, expected, atol=2e-5, rtol=0)
    output = ContrastiveAlignmentLoss()(model, batch)
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
    output.loss.backward()


def test_no_image_column_is_carried_along():
    lengths = []
    for family in (llava, qwen3_vl, gemma3):
        model, batch = make(family)
        hook = (
            model.get_decoder()
            .layers[0]
            .register_forward_pre_hook(
                lambda _, args, kwargs: lengths.append((args[0] if args else kwargs["hidden_states"]).shape[1]),
                with_kwargs=True,
            )
        )
        contrast_logits(model, batch)
        hook.remove()
        words = (batch["attention_mask"].bool() & (batch["input_ids"] != IMAGE)).sum(1).max().item()
        assert lengths[-2:] == [batch["input_ids"].shape[1], words]
