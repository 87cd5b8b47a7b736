"""What the image is held against, each against its definition written out."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter1d
from transformers import LlamaConfig, LlamaForCausalLM

from cal_cli.objective import ContrastiveAlignmentLoss, PriorLoss, contrast_logits, scores_without_image
from cal_cli.objective.contrasts import Cached, blur, cover_patches
from tests.objective.families import make


@given(st.sampled_from([0.5, 1.0, 10.0]), st.integers(3, 30), st.integers(3, 30))
@settings(deadline=None, max_examples=20)
def test_blur_is_scipy_s_gaussian(sigma, height, width):
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = gaussian_filter1d(gaussian_filter1d(pixels.numpy(), sigma, 2, mode="nearest"), sigma, 3, mode="nearest")
    np.testing.assert_allclose(blur(pixels, sigma).numpy(), expected, atol=1e-5)


@given(st.sampled_from([0.1, 0.5, 0.7, 0.9, 1.0]), st.integers(1, 3), st.sampled_from([(16, 16), (18, 10)]))
@settings(deadline=None)
def test_whole_patches_are_covered_in_the_share_asked_for(ratio, pictures, size):
    pixels = torch.ones(pictures, 2, 3, *size)
    covered = cover_patches(pixels, ratio, 4) == 0
    assert (covered == covered[:, :, :1]).all()  # in all channels alike
    rows, columns = -(-size[0] // 4), -(-size[1] // 4)
    by_patch = covered[:, :, 0, ::4, ::4].reshape(pictures, 2, -1)
    assert (by_patch.sum(2) == round(ratio * rows * columns)).all()
    whole = covered[:, :, 0, ::4, ::4].repeat_interleave(4, 2).repeat_interleave(4, 3)[..., : size[0], : size[1]]
    assert torch.equal(whole, covered[:, :, 0])


def test_patches_that_the_processor_cut_are_covered_whole():
    covered = cover_patches(torch.ones(32, 96), 0.7, 4)
    assert set(covered.sum(1).tolist()) == {0.0, 96.0}
    assert (covered[:, 0] == 0).sum() == round(0.7 * 32)


@pytest.mark.parametrize("family", ["llava", "gemma3"])
@pytest.mark.parametrize("contrast", ["blur", "masked_patches"])
def test_a_changed_picture_is_a_second_pass_over_it(family, contrast):
    model, batch = make(family)
    objective = ContrastiveAlignmentLoss(
        contrast=contrast, **({"sigma": 2.0} if contrast == "blur" else {"ratio": 1.0})
    )
    delta = objective(model, batch).delta
    pixels = batch["pixel_values"]
    changed = {**batch, "pixel_values": blur(pixels, 2.0) if contrast == "blur" else torch.zeros_like(pixels)}
    expected = contrast_logits(model, batch).with_image - contrast_logits(model, changed).with_image
    torch.testing.assert_close(delta, expected, atol=1e-5, rtol=0)
    assert delta.abs().max() > 0.1


def test_masked_patches_serve_qwen_and_blur_says_that_it_cannot():
    model, batch = make("qwen2_vl")
    assert ContrastiveAlignmentLoss(contrast="masked_patches")(model, batch).delta.abs().max() > 0.1
    with pytest.raises(ValueError, match="masked_patches"):
        ContrastiveAlignmentLoss(contrast="blur")(model, batch)


def text_model():
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=120, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    return model


def reference_logprobs(reference, batch, image):
    """P_r(t_i | t_<i) one sample at a time, its image tokens and padding taken out by hand."""
    found = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        kept = mask.bool() & (ids != image)
        with torch.no_grad():
            logprobs = reference(input_ids=ids[kept][None]).logits[0].log_softmax(-1)
        for place, (token, label) in enumerate(zip(ids[kept].tolist(), labels[kept].tolist(), strict=True)):
            if label != -100:
                found.append(logprobs[place - 1, token].item())
    return torch.tensor(found)


def test_prior_is_its_published_formula():
    model, batch = make("llava")
    reference = text_model()
    output = PriorLoss(reference=reference)(model, batch)
    weights = 1 - reference_logprobs(reference, batch, model.config.image_token_id).exp()
    torch.testing.assert_close(output.weights, weights, atol=1e-5, rtol=1e-5)
    rows = (batch["labels"][:, 1:] != -100).nonzero()[:, 0]
    losses = []
    for row in range(2):  # loss_i = sum k * w / sum(w) * -log p, averaged over tokens as cross-entropy is
        w, ce = weights[rows == row], output.cross_entropy[rows == row]
        losses.append((len(w) * w / w.sum() * ce).sum())
    torch.testing.assert_close(output.loss, sum(losses) / len(rows), atol=1e-5, rtol=1e-5)


def test_prior_counts_samples_without_an_image_in_full(model, batch):
    weights = PriorLoss(reference=copy.deepcopy(model))(model, batch).weights
    contrast = contrast_logits(model, batch)
    assert weights[~contrast.has_image].eq(1).all()
    assert weights[contrast.has_image].lt(1).all()


def test_a_reference_may_be_a_vision_language_model(model, batch):
    """Without an image in the batch, the model's own text pass is its text-only self."""
    reference = copy.deepcopy(model)
    output = ContrastiveAlignmentLoss(contrast="reference", score="logprob", reference=reference)(model, batch)
    with_image = contrast_logits(model, batch, "logprob")
    shown = with_image.has_image
    rows = batch["input_ids"].eq(model.config.image_token_id).any(1)
    expected = reference_logprobs(
        lambda input_ids: model(input_ids=input_ids),
        {k: v[rows] for k, v in batch.items() if k != "pixel_values"},
        model.config.image_token_id,
    )
    torch.testing.assert_close(output.delta[shown], with_image.with_image[shown] - expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "objective",
    [
        ContrastiveAlignmentLoss(),
        ContrastiveAlignmentLoss(score="logprob", alpha=0, window=9),
        PriorLoss(reference=text_model()),
    ],
)
def test_cached_scores_give_the_same_loss_and_no_second_pass(objective):
    model, batch = make("llava")
    expected = objective(model, batch)
    batch["scores_without_image"] = scores_without_image(objective, model, batch)
    calls = []
    for module in (model.get_decoder(), *([objective.reference.model] if objective.reference else [])):
        module.register_forward_hook(lambda *_: calls.append(1))
    objective.contrast = Cached(objective.contrast)
    output = objective(model, batch)
    assert len(calls) == 1
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(output.weights, expected.weights, atol=1e-6, rtol=1e-6)


def test_what_is_missing_is_named():
    model, batch = make("llava")
    with pytest.raises(ValueError, match="scores_without_image"):
        ContrastiveAlignmentLoss(contrast="cached")(model, batch)
    with pytest.raises(ValueError, match="lacks a supervised token"):
        scores = torch.full(batch["labels"].shape, torch.nan)
        ContrastiveAlignmentLoss(contrast="cached")(model, {**batch, "scores_without_image": scores})
    with pytest.raises(ValueError, match="frozen model"):
        PriorLoss()(model, batch)
    small = LlamaForCausalLM(LlamaConfig(vocab_size=20, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    with pytest.raises(ValueError, match="share the tokenizer"):
        PriorLoss(reference=small)(model, batch)
    for options, named in (
        ({"contrast": "masked_patches", "ratio": 0.0}, "above 0 and at most 1"),
        ({"contrast": "blur", "sigma": 0.0}, "must be above 0"),
        ({"contrast": "dark"}, "no_image"),
        ({"ratio": 0.5}, "needs contrast=masked_patches"),
        ({"contrast": "masked_patches", "sigma": 1.0}, "needs contrast=blur"),
        ({"contrast": "blur", "reference": small}, "needs contrast=reference or contrast=cached"),
    ):
        with pytest.raises(ValueError, match=named):
            ContrastiveAlignmentLoss(**options)
    with pytest.raises(ValueError, match="answer"):
        ContrastiveAlignmentLoss(contrast="cached", pooling="flat")
