"""Every path of the loss against the naive full-length, full-vocabulary, masked formulation."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from cal_cli.data.collator import Collator
from cal_cli.objective import ContrastiveAlignmentLoss, CrossEntropyLoss, contrast_logits
from tests.objective.naive import naive_loss

OPTIONS = list(
    itertools.product(["logit", "logprob"], [(1, 5), (0, 2)], [1, 3, 5], ["batch", "sample"], ["answer", "flat"])
)


def picture(seed):
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(torch.randint(0, 255, (48, 48, 3), generator=generator, dtype=torch.uint8).numpy())


def turns(*values):
    return [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]


def make_batch(processor, conversations, **options):
    """A batch from conversations; those that mark an image get one."""
    samples = [
        {"id": str(i), "image": picture(i) if any("<image>" in t["value"] for t in c) else None, "conversations": c}
        for i, c in enumerate(conversations)
    ]
    return Collator(processor, **options)(samples)


@pytest.fixture
def hard_batch(processor):
    """Unequal lengths, several turns; the image first, in the middle, at the end of a prompt, and none."""
    return make_batch(
        processor,
        [
            turns("<image>\ndescribe the picture.", "a red ring in the top left."),
            turns(
                "hello", "an answer before any picture", "look <image> where is it?", "in the middle.", "and?", "no."
            ),
            turns("nothing to see", "words alone, and more of them than elsewhere, to make the batch unequal"),
            turns("what colour is the ring?\n<image>", "red"),
        ],
    )


@pytest.fixture
def plain_batch(hard_batch, model):
    """A caption right after its image: the first token is predicted from the image's last column."""
    batch = {key: value.clone() for key, value in hard_batch.items()}
    last = (batch["input_ids"][0] == model.config.image_token_id).nonzero().max()
    batch["labels"][0, last + 1] = batch["input_ids"][0, last + 1]
    return batch


@pytest.mark.parametrize(("score", "bounds", "window", "normalization", "pooling"), OPTIONS)
def test_delta_weights_and_gradient_equal_the_naive_formulation(
    model, hard_batch, score, bounds, window, normalization, pooling
):
    options = {"score": score, "alpha": bounds[0], "beta": bounds[1], "window": window}
    options |= {"normalization": normalization, "pooling": pooling}
    expected, delta, weights = naive_loss(model, hard_batch, **options)
    expected.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = ContrastiveAlignmentLoss(**options)(model, hard_batch)
    output.loss.backward()

    supervised = hard_batch["labels"][:, 1:] != -100
    torch.testing.assert_close(output.delta, delta[supervised], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.weights, weights[supervised], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)
    assert delta[supervised].abs().max() > 0.5  # the comparison would be empty if the image changed nothing
    for name, parameter in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=0, msg=name)


@pytest.mark.parametrize("pooling", ["answer", "flat"])
def test_a_caption_right_after_its_image_equals_the_masked_formulation(model, plain_batch, pooling):
    options = {"score": "logit", "alpha": 1, "beta": 5, "window": 3, "normalization": "batch", "pooling": pooling}
    expected, delta, weights = naive_loss(model, plain_batch, **options)
    output = ContrastiveAlignmentLoss(**options)(model, plain_batch)
    supervised = plain_batch["labels"][:, 1:] != -100
    torch.testing.assert_close(output.delta, delta[supervised], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.weights, weights[supervised], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)


def test_the_shipped_world_equals_the_naive_formulation(model, batch):
    options = {"score": "logit", "alpha": 1, "beta": 5, "window": 3, "normalization": "sample", "pooling": "answer"}
    expected, delta, _ = naive_loss(model, batch, **options)
    output = ContrastiveAlignmentLoss(**options)(model, batch)
    torch.testing.assert_close(output.delta, delta[batch["labels"][:, 1:] != -100], atol=1e-5, rtol=0)
    torch.testing.assert_close(output.loss, expected, atol=1e-5, rtol=1e-5)


def test_left_padding_changes_no_delta(model, hard_batch):
    """Moving the padding to the left shifts every position alike, which rotary embeddings do not see."""
    length = hard_batch["input_ids"].shape[1]
    rolled = {key: value.clone() for key, value in hard_batch.items()}
    for row, kept in enumerate(hard_batch["attention_mask"].sum(1).tolist()):
        for key in ("input_ids", "attention_mask", "labels"):
            rolled[key][row] = hard_batch[key][row].roll(length - kept)
    right, left = contrast_logits(model, hard_batch), contrast_logits(model, rolled)
    torch.testing.assert_close(left.labels, right.labels)
    torch.testing.assert_close(left.delta, right.delta, atol=2e-5, rtol=0)


def test_cross_entropy_is_the_library_s(model, batch):
    expected = model(**batch)
    expected.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    output = CrossEntropyLoss()(model, batch)
    output.loss.backward()
    torch.testing.assert_close(output.loss, expected.loss, atol=1e-5, rtol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)
    assert output.delta is None and output.weights.eq(1).all()
    with pytest.raises(ValueError, match="batch, tokens, sample, length and device_batch"):
        CrossEntropyLoss(normalization="token")


def test_cross_entropy_by_sample_is_the_mean_of_the_samples_own(model, batch):
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    losses = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    supervised = batch["labels"][:, 1:] != -100
    expected = torch.stack([loss[chosen].mean() for loss, chosen in zip(losses, supervised, strict=True)]).mean()
    found = CrossEntropyLoss(normalization="sample")(model, batch).loss
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_equal_bounds_are_cross_entropy(model, batch):
    output = ContrastiveAlignmentLoss(alpha=1, beta=1)(model, batch)
    torch.testing.assert_close(output.loss, model(**batch).loss, atol=1e-5, rtol=1e-5)


def test_cross_entropy_runs_the_decoder_once(model, batch):
    calls = []
    hook = model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    CrossEntropyLoss()(model, batch)
    assert len(calls) == 1
    ContrastiveAlignmentLoss()(model, batch)
    hook.remove()
    assert len(calls) == 3


def test_the_second_pass_holds_no_image_column_and_no_text_only_sample(model, batch):
    shapes = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: shapes.append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    contrast_logits(model, batch)
    hook.remove()
    is_image = batch["input_ids"] == model.config.image_token_id
    shown = is_image.any(1)
    text = (batch["attention_mask"].bool() & ~is_image)[shown].sum(1).max()
    assert shapes[1] == (shown.sum(), text)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0, 5.0])
def test_samples_without_an_image_have_delta_0_and_weight_1(model, processor, alpha):
    batch = make_batch(processor, [turns("hello", "words alone"), turns("<image>\nwhat?", "a ring")])
    output = ContrastiveAlignmentLoss(alpha=alpha)(model, batch)
    alone = (batch["labels"][0, 1:] != -100).sum()
    assert output.weights[:alone].eq(1).all()
    assert output.delta[:alone].eq(0).all()
    assert output.delta[alone:].ne(0).any()
    if alpha == 5:  # equal to beta
        assert output.weights[alone:].eq(5).all()


def test_a_batch_without_any_image_is_cross_entropy(model, processor):
    batch = make_batch(processor, [turns("hello", "words alone"), turns("what?", "a ring in the top left")])
    output = ContrastiveAlignmentLoss(score="logprob", alpha=0)(model, batch)
    torch.testing.assert_close(output.loss, model(**batch).loss, atol=1e-5, rtol=1e-5)


def test_contrast_names_each_label_s_place(model, batch):
    contrast = contrast_logits(model, batch)
    assert torch.equal(batch["labels"][contrast.sample_index, contrast.position], contrast.labels)
    assert len(contrast.labels) == (batch["labels"][:, 1:] != -100).sum()
    assert contrast.with_image.dtype == contrast.without_image.dtype == torch.float32


def test_no_gradient_flows_through_the_weights(model, batch):
    """The gradient is that of a weighted sum whose weights are constants."""
    objective = ContrastiveAlignmentLoss()
    output = objective(model, batch)
    logits = model(**{key: value for key, value in batch.items() if key != "labels"}).logits[:, :-1]
    cross_entropy = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    weighted = output.weights * cross_entropy[batch["labels"][:, 1:] != -100]
    weighted.sum().div(output.weights.sum() + 1e-6).backward()
    expected = model.lm_head.weight.grad.clone()
    model.zero_grad()
    objective(model, batch).loss.backward()
    assert not output.weights.requires_grad
    torch.testing.assert_close(model.lm_head.weight.grad, expected)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"score": "prob"}, "logit and logprob"),
        ({"alpha": 6.0}, "alpha <= beta"),
        ({"alpha": -1.0}, "0 <= alpha"),
        ({"alpha": 0.0, "beta": 0.0}, "0 < beta"),
        ({"window": 2}, "odd"),
        ({"window": 0}, "odd"),
        ({"normalization": "token"}, "batch, tokens, sample, length and device_batch"),
        ({"pooling": "row"}, "answer and flat"),
    ],
)
def test_wrong_options_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        ContrastiveAlignmentLoss(**options)


def test_a_batch_without_supervised_tokens_is_an_error(model, batch):
    batch["labels"][:] = -100
    with pytest.raises(ValueError, match="no supervised token"):
        ContrastiveAlignmentLoss()(model, batch)
    with pytest.raises(ValueError, match="no supervised token"):
        contrast_logits(model, batch)


def test_a_model_without_language_head_is_an_error(model, batch):
    with pytest.raises(ValueError, match="no language head"):
        contrast_logits(model.model, batch)
