"""The scores and the loss of every family against the library's own, and each family's mechanism by itself."""

import pytest
import torch
import torch.nn.functional as F

from cal_cli.objective import ContrastiveAlignmentLoss, contrast_logits
from tests.objective.coverage import LIBRARY, TOLERANCE, compare_behind_image, measure, pick_labels, read_table
from tests.objective.families import IMAGE, make
from tests.objective.reference import compute_hidden_logits

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
HIDDEN, TEXT = "hidden columns", "text alone"
MECHANISMS = {  # and the references that agree
    "llava": f"{HIDDEN} and {TEXT}",  # full attention
    "qwen2_5_vl": f"{HIDDEN} and {TEXT}",  # three rows of positions
    "qwen3_vl": f"{HIDDEN} and {TEXT}",  # features added in lower layers
    "qwen3_vl_moe": f"{HIDDEN} and {TEXT}",  # experts
    "gemma3": HIDDEN,  # windows, and images that attend in both directions
    "paligemma": HIDDEN,  # prompts that attend in both directions
    "llama4": HIDDEN,  # chunks, in a whole causal language model
    "dots3_note": HIDDEN,  # an indexer, within the columns that it selects
    "instructblip": HIDDEN,  # learnt positions, counted by the mask
    "mllama": TEXT,  # cross-attention
    "qwen3_5": TEXT,  # DeltaNet
    "lfm2_vl": TEXT,  # short convolutions
    "lfm3_vl": TEXT,  # the same beside windows, which count the columns of the text alone
    "nemotron_h_omni": TEXT,  # Mamba
}


@pytest.mark.parametrize(("family", "references"), MECHANISMS.items(), ids=list(MECHANISMS))
def test_each_mechanism_equals_a_reference(family, references):
    found = measure(family)
    assert (found.verdict, found.detail) == ("supported", references)


@pytest.mark.slow
@pytest.mark.parametrize("family", LIBRARY)
def test_every_type_of_the_library_is_as_documented(family):
    """A type that a new release adds is unknown, and fails here until the table is written again."""
    found, documented = measure(family), read_table().get(family)
    assert found.verdict not in ("wrong", "unknown")
    assert (found.verdict, found.detail) == documented
    assert found.cross_entropy is None or found.cross_entropy < TOLERANCE


@pytest.mark.parametrize("score", ["logit", "logprob"])
@pytest.mark.parametrize(
    "family", ["llava_sliding", "gemma3", "qwen2_vl", "muse_glimmer", "chameleon", "cohere2_vision"]
)
def test_both_scores_equal_those_of_hidden_columns(family, score):
    """Log-probabilities take each family's scale, soft cap and tokens that are never predicted into account."""
    model, batch = make(family)
    contrast = contrast_logits(model, batch, score)
    logits = compute_hidden_logits(model, batch)
    if score == "logprob":
        logits = [part.float().log_softmax(-1) for part in logits]
    torch.testing.assert_close(contrast.with_image, pick_labels(logits[0], batch), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(contrast.without_image, pick_labels(logits[1], batch), atol=1e-5, rtol=1e-5)
    assert contrast.delta.abs().max() > 0.3  # the comparison would be empty if the image changed nothing


@pytest.mark.parametrize("family", [*MECHANISMS, "llava_next", "idefics3", "gemma3n", "chameleon", "muse_spark"])
def test_loss_and_gradients_equal_those_of_all_logits(family):
    model, batch = make(family)
    output = ContrastiveAlignmentLoss()(model, batch)
    output.loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    logits = model(**inputs, use_cache=False).logits[:, :-1].float()
    cross_entropy = F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")
    cross_entropy = cross_entropy[batch["labels"][:, 1:] != -100]
    ((output.weights * cross_entropy).sum() / output.weights.sum()).backward()
    torch.testing.assert_close(output.cross_entropy, cross_entropy.detach(), atol=1e-5, rtol=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("family", ["llava_next", "qwen3_vl", "paligemma", "gemma3", "mllama", "qwen3_5", "llama4"])
@pytest.mark.parametrize("checked", ["eager", "checkpointing"])
def test_eager_attention_and_checkpointing_change_nothing(family, checked):
    model, batch = make(family)
    expected = contrast_logits(model, batch).delta
    loss = ContrastiveAlignmentLoss()(model, batch).loss
    if checked == "eager":
        model.set_attn_implementation("eager")
    else:
        model.train()
        model.activation_checkpointing_enable()
    torch.testing.assert_close(contrast_logits(model, batch).delta, expected, atol=2e-5, rtol=0)
    output = ContrastiveAlignmentLoss()(model, batch)
    torch.testing.assert_close(output.loss, loss, atol=1e-5, rtol=1e-5)
    output.loss.backward()


@pytest.mark.parametrize("family", ["llava", "qwen3_vl", "gemma3", "qwen3_5", "llama4"])
def test_no_image_column_is_carried_along(family):
    model, batch = make(family)
    decoder = model.get_decoder()
    lengths = []
    hook = (
        getattr(decoder, "model", decoder)
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


@pytest.mark.parametrize("family", ["qwen3_vl", "qwen3_omni_moe_thinker", "cohere_compass", "granite4_vision", "llava"])
def test_a_supervised_token_right_behind_its_image_is_exact(family):
    """Features that lower layers add belong to the image's last column too, which predicts this token."""
    assert compare_behind_image(*make(family)) < TOLERANCE


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl", "nemotron_h_omni", "chameleon"])
def test_a_supervised_token_right_behind_its_image_is_refused(family):
    """Recurrent layers would carry the image's column on, and Chameleon's decoder is given no features for it."""
    assert compare_behind_image(*make(family)) is None


def test_an_indexer_beyond_the_columns_that_it_selects():
    model, batch = make("mistral_large4")
    model.get_decoder().config.index_topk = 8
    with pytest.raises(ValueError, match=r"selects 8 of these 26 columns"):
        contrast_logits(model, batch)


@pytest.mark.parametrize(
    "family",
    ["glm5_next", "lfm2_vl", "lfm3_vl", "minicpmv4_6", "nemotron_h_omni", "qwen3_5", "qwen3_5_moe", "qwen4_exp"],
)
def test_a_recurrent_state_decays_over_columns_that_are_only_hidden(family):
    """Why the image's columns are dropped there: hiding them at full length is no removal."""
    model, batch = make(family)
    hidden = pick_labels(compute_hidden_logits(model, batch)[1], batch)
    assert (contrast_logits(model, batch).without_image - hidden).abs().max() > 0.1
