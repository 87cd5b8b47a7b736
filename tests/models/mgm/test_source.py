"""MGM assembled from parts, and converted from checkpoints with the published names."""

import re

import pytest
import torch
from safetensors.torch import save_file
from transformers import ConvNextConfig, ConvNextModel

from cal_cli.data.collator import Collator
from cal_cli.models.mgm.model import CONVNEXT_LARGE, MGMConfig, MGMForConditionalGeneration
from cal_cli.models.mgm.source import CONVNEXT, PUBLISHED, MGMSource, convert_published, rename_weights
from cal_cli.models.parts import group_parameters
from cal_cli.runtime.errors import InputError
from cal_cli.toy.world import make_scenes
from tests.models.mgm.test_model import AUX
from tests.models.parts import save_language_model, save_vision_tower


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """The arguments of a source with small parts: 4 x 4 places for each crop."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(2)
    ConvNextModel(ConvNextConfig(**AUX)).save_pretrained(folder / "convnext")
    return {
        "language_model": save_language_model(folder / "llama"),
        "vision_tower": save_vision_tower(folder / "clip"),
        "aux_vision_tower": str(folder / "convnext"),
        "aux_image_size": 64,
    }


@pytest.mark.parametrize(("crops", "tokens"), [(1, 16), (2, 80)])
@pytest.mark.parametrize("aspect", ["square", "pad"])
def test_the_processor_makes_what_the_model_reads(parts, crops, tokens, aspect):
    model, processor = MGMSource(**parts, crops=crops, image_aspect_ratio=aspect).load()
    data = make_scenes(n=3, text_only_share=0.0)
    batch = Collator(processor)([data[index] for index in range(3)])
    assert batch["pixel_values"].shape == (3, 3, 64, 64)
    assert (batch["input_ids"] == model.config.image_token_id).sum(dim=1).tolist() == [tokens] * 3
    assert torch.isfinite(model(**batch).loss)
    assert model.config.image_seq_length == tokens
    config = MGMSource(**parts, crops=crops).load_config()
    assert config.image_token_id == model.config.image_token_id
    assert config.text_config.vocab_size == model.config.text_config.vocab_size


def test_the_parts_are_those_given_and_the_mining_is_the_projector_s(parts):
    model, _ = MGMSource(**parts).load(seed=3)
    again, _ = MGMSource(**parts).load(seed=3)
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    tower = ConvNextModel.from_pretrained(parts["aux_vision_tower"]).state_dict()
    for name, value in model.model.aux_vision_tower.state_dict().items():
        assert torch.equal(value, tower[name])
    members = group_parameters(model)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(p)].split(".")[1] for p in members["projector"]} == {"mining", "multi_modal_projector"}
    assert {names[id(p)].split(".")[1] for p in members["vision_tower"]} == {"vision_tower", "aux_vision_tower"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"aux_image_size": 60}, "model.aux_image_size=60: must be a multiple of 16"),
        ({"aux_vision_tower": None}, "model.aux_vision_tower is null"),
        ({"aux_vision_tower": "nowhere/at/all"}, "there is no such folder"),
        ({"crops": 0}, "model.crops=0: must be at least 1"),
        ({"image_aspect_ratio": "anyres"}, "MGM has crops, not tiles"),
    ],
)
def test_wrong_parts_are_named(parts, change, said):
    with pytest.raises(InputError, match=re.escape(said)):
        MGMSource(**(parts | change)).load()


def publish(name):
    """Our name of a weight as in the published checkpoints; written by hand, not derived from the converter."""
    for ours, published in (
        ("model.language_model.", "model."),
        ("model.multi_modal_projector.linear_1.", "model.mm_projector.0."),
        ("model.multi_modal_projector.linear_2.", "model.mm_projector.2."),
        ("model.mining.query.", "model.vlm_uni_query_projector."),
        ("model.mining.key.", "model.vlm_uni_aux_projector."),
        ("model.mining.value.", "model.vlm_uni_val_projector."),
        ("model.vision_tower.", "model.vision_tower.vision_tower.vision_model."),
        ("model.aux_vision_tower.embeddings.patch_embeddings.", "model.vision_tower_aux.vision_stem.0."),
        ("model.aux_vision_tower.embeddings.layernorm.", "model.vision_tower_aux.vision_stem.1."),
    ):
        if name.startswith(ours):
            return published + name[len(ours) :]
    if found := re.fullmatch(r"model\.aux_vision_tower\.encoder\.stages\.(\d+)\.(.*)", name):
        stage, rest = found.groups()
        if rest.startswith("downsampling_layer."):
            return f"model.vision_tower_aux.vision_stages.{stage}.downsample.{rest[len('downsampling_layer.') :]}"
        _, layer, rest = rest.split(".", 2)
        for ours, timm in (
            ("layer_scale_parameter", "gamma"),
            ("dwconv", "conv_dw"),
            ("layernorm", "norm"),
            ("pwconv1", "mlp.fc1"),
            ("pwconv2", "mlp.fc2"),
        ):
            if rest.startswith(ours):
                timm_name = timm + rest[len(ours) :]
                return f"model.vision_tower_aux.vision_stages.{stage}.blocks.{layer}.{timm_name}"
    return name


@pytest.mark.parametrize("crops", [1, 2])
def test_a_checkpoint_with_published_names_is_converted_whole(parts, crops, tmp_path):
    source = MGMSource(**parts, crops=crops)
    model, processor = source.load()
    vocabulary = len(processor.tokenizer) - 2  # a published checkpoint knows neither <image> nor <pad>
    weights = {publish(name): value.clone() for name, value in model.state_dict().items()}
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = weights[name][:vocabulary].clone()
    save_file(weights, tmp_path / "model.safetensors")
    converted = convert_published(tmp_path, source).eval()
    data = make_scenes(n=2, text_only_share=0.0)
    batch = Collator(processor)([data[0], data[1]])
    found, expected = (one(**batch).logits[..., :vocabulary] for one in (converted, model.eval()))
    text = (batch["input_ids"] != model.config.image_token_id) & batch["attention_mask"].bool()
    assert torch.allclose(found[text], expected[text], atol=1e-5)
    for change, said in (({"model.layers.9.x": torch.ones(1)}, "left over"), ({"stray": torch.ones(1)}, "not a known")):
        save_file(weights | change, tmp_path / "model.safetensors")
        with pytest.raises(InputError, match=said):
            convert_published(tmp_path, source)
    save_file({k: v for k, v in weights.items() if "query_projector.0" not in k}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.mining\.query\.0\.(bias|weight) is missing"):
        convert_published(tmp_path, source)


def test_all_names_of_the_published_models_are_known():
    with torch.device("meta"):
        model = MGMForConditionalGeneration(MGMConfig())
    own = {name: value for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    renamed = rename_weights({publish(name): value for name, value in own.items()}, PUBLISHED)
    assert {name: value.shape for name, value in renamed.items()} == {name: v.shape for name, v in own.items()}


def test_timm_s_names_and_shapes_of_convnext_large():
    names = {"stem.0.weight": (192, 3, 4, 4), "stem.0.bias": (192,), "stem.1.weight": (192,), "stem.1.bias": (192,)}
    before = 192
    for stage, (depth, width) in enumerate(zip([3, 3, 27, 3], [192, 384, 768, 1536], strict=True)):
        prefix = f"stages.{stage}"
        if stage:
            names |= {f"{prefix}.downsample.0.{kind}": (before,) for kind in ("weight", "bias")}
            names |= {f"{prefix}.downsample.1.weight": (width, before, 2, 2), f"{prefix}.downsample.1.bias": (width,)}
        for block in range(depth):
            inside = f"{prefix}.blocks.{block}"
            names |= {f"{inside}.gamma": (width,), f"{inside}.conv_dw.weight": (width, 1, 7, 7)}
            names |= {f"{inside}.{part}": (width,) for part in ("conv_dw.bias", "norm.weight", "norm.bias")}
            names |= {f"{inside}.mlp.fc1.weight": (4 * width, width), f"{inside}.mlp.fc1.bias": (4 * width,)}
            names |= {f"{inside}.mlp.fc2.weight": (width, 4 * width), f"{inside}.mlp.fc2.bias": (width,)}
        before = width
    with torch.device("meta"):
        expected = ConvNextModel(ConvNextConfig(**CONVNEXT_LARGE)).state_dict()
        renamed = rename_weights({name: torch.empty(shape) for name, shape in names.items()}, CONVNEXT)
    shapes = {name: value.shape for name, value in expected.items() if not name.startswith("layernorm.")}
    assert {name: value.shape for name, value in renamed.items()} == shapes
