"""What cannot be done right ends with a sentence that says why."""

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration, BloomConfig, BloomModel

from cal_cli.objective import ContrastiveAlignmentLoss, NonFiniteLoss, contrast_logits
from cal_cli.objective.loss import RuleLoss
from cal_cli.objective.passes import get_position_ids, make_masks
from cal_cli.objective.rules import EqualWeights
from tests.objective.families import make


def test_pixels_without_an_image_token():
    model, batch = make("llava")
    batch["input_ids"] = batch["input_ids"].masked_fill(batch["input_ids"] == model.config.image_token_id, 5)
    for use in (contrast_logits, ContrastiveAlignmentLoss()):
        with pytest.raises(ValueError, match="pixel_values but no image token"):
            use(model, batch)


def test_nan_logits():
    model, batch = make("llava")
    batch["pixel_values"][1] = torch.nan
    with pytest.raises(FloatingPointError, match="row 1 of the batch"):
        contrast_logits(model, batch)
    with pytest.raises(NonFiniteLoss, match="row 1 of the batch") as raised:
        ContrastiveAlignmentLoss()(model, batch)
    assert raised.value.rows == [1]


def test_layers_of_an_unknown_kind():
    model, batch = make("llava")
    model.get_decoder().config.layer_types = ["full_attention", "block_sparse_attention"] * 2
    with pytest.raises(ValueError, match="have block_sparse_attention layers, from which it is not known"):
        contrast_logits(model, batch)


def test_a_loss_of_its_own_for_the_experts():
    """The library adds it to the cross-entropy; without a word, training would go on without it."""
    model, batch = make("qwen3_vl_moe")
    model.config.text_config.output_router_logits = True
    for use in (contrast_logits, RuleLoss(EqualWeights())):
        with pytest.raises(ValueError, match="give output_router_logits=false"):
            use(model, batch)


@pytest.mark.parametrize("family", ["blip", "git", "kosmos-2"])
def test_models_whose_image_has_no_columns_train_plainly_alone(family):
    model, batch = make(family)
    torch.testing.assert_close(RuleLoss(EqualWeights())(model, batch).loss, model(**batch).loss)
    with pytest.raises(ValueError):
        ContrastiveAlignmentLoss()(model, batch)


@pytest.mark.parametrize("tiles", [torch.zeros(3), [torch.zeros(3)], {"first": torch.zeros(3)}])
def test_something_unknown_of_the_image_for_the_decoder(tiles):
    model, batch = make("llava")
    model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: (args, {**kwargs, "tiles": tiles}), with_kwargs=True
    )
    with pytest.raises(ValueError, match="takes tiles"):
        contrast_logits(model, batch)


def test_flash_kernels_where_they_cannot_mask_so():
    model, batch = make("llava_sliding")
    model.get_decoder().config._attn_implementation_internal = "flash_attention_2"
    attended = batch["attention_mask"].bool()
    samples, order = torch.arange(2), torch.arange(attended.shape[1]).expand(2, -1)
    arguments = (model.get_decoder(), {"attention_mask": None}, attended)
    with pytest.raises(ValueError, match="columns, with flash"):
        make_masks(*arguments, attended, attended, samples, order)
    with pytest.raises(ValueError, match="directly follows its image"):
        make_masks(*arguments, attended, torch.ones_like(attended), samples, order)


def test_masks_of_a_kind_that_cannot_be_cut():
    model, batch = make("gemma3")
    attended = batch["attention_mask"].bool()
    samples, order = torch.arange(2), torch.arange(attended.shape[1]).expand(2, -1)
    given = {"attention_mask": {"full_attention": "a block mask"}}
    with pytest.raises(ValueError, match="use attn_implementation"):
        make_masks(model.get_decoder(), given, attended, attended, attended, samples, order)


def test_a_decoder_that_computes_its_positions_itself():
    """BLOOM derives its positions from the mask: without the image's columns they would be others."""
    decoder = BloomModel(BloomConfig(vocab_size=60, hidden_size=16, n_layer=1, n_head=2))
    attended = torch.ones(2, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match="put position_ids into the batch"):
        get_position_ids(decoder, {}, attended)
    given = torch.arange(5)[None]
    assert torch.equal(get_position_ids(decoder, {"position_ids": given}, attended), given.expand(2, -1))


def test_an_encoder_decoder_has_no_decoder_that_runs_alone():
    config = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 60, "model_type": "bart"}
    model = BartForConditionalGeneration(BartConfig(**config, encoder_attention_heads=2, decoder_attention_heads=2))
    model.config.image_token_id = 50
    ids = torch.tensor([[50, 7, 8, 9]])
    with pytest.raises(ValueError, match="have an encoder for their text"):
        contrast_logits(model, {"input_ids": ids, "labels": ids})


def test_position_ids_of_the_batch_are_used():
    """With M-RoPE three rows: given by hand, the same numbers as computed by the model."""
    model, batch = make("qwen3_vl")
    seen = {}
    hook = model.get_decoder().register_forward_pre_hook(lambda _, __, kw: seen.update(kw), with_kwargs=True)
    expected = contrast_logits(model, batch)
    hook.remove()
    assert seen["position_ids"].shape[-2] == 2 and seen["position_ids"].dim() == 3
    assert expected.delta.abs().max() > 0.3
