"""MGM against its forward pass written out, and through the library: saved, loaded, generating, contrasted."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForImageTextToText, CLIPVisionConfig, LlamaConfig

from cal_cli.models.mgm.model import CONVNEXT_LARGE, MGMConfig, MGMForConditionalGeneration
from cal_cli.objective import contrast_logits
from tests.objective.families import IMAGE, PAD, TEXT, VISION
from tests.objective.naive import naive_delta, naive_logits

AUX = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "layer_scale_init_value": 0.5, "drop_path_rate": 0.1}


def make_mgm(crops=1):
    """A model of random weights with 16 image tokens, or 80 with 2 x 2 crops; each place owns 2 x 2 details."""
    torch.manual_seed(0)
    config = MGMConfig(
        text_config=LlamaConfig(**TEXT),
        vision_config=CLIPVisionConfig(**VISION),
        aux_vision_config={"model_type": "convnext", **AUX},
        aux_image_size=32 * crops,
        crops=crops,
        image_token_index=IMAGE,
    )
    model = MGMForConditionalGeneration(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_batch(crops=1):
    tokens = 16 if crops == 1 else 80
    rows = [[1, 5, *[IMAGE] * tokens, 11, 12, *range(30, 38)], [1, 6, 7, *[IMAGE] * tokens, 21, *range(40, 45)]]
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    answer = (ids >= 30) & (ids < 60)
    return {
        "input_ids": ids,
        "attention_mask": (ids != PAD).long(),
        "labels": ids.masked_fill(~answer, -100),
        "pixel_values": torch.randn(2, 3, 32 * crops, 32 * crops),
    }


def mine_written_out(model, low, high):
    """Patch-info mining place by place: `low` [channels, h, w] and `high` [channels, m h, m w] of one picture."""
    mining, (_, rows, columns) = model.model.mining, low.shape
    ratio = high.shape[1] // rows
    mined = []
    for row in range(rows):
        for column in range(columns):
            x = low[:, row, column]
            own = high[:, ratio * row : ratio * (row + 1), ratio * column : ratio * (column + 1)].flatten(1).T
            query = mining.query[1](mining.query[0](x))
            keys, values = mining.key[1](mining.key[0](own)), mining.value[1](mining.value[0](own))
            shares = (keys @ query / len(x) ** 0.5).softmax(dim=0)
            mined.append(x + shares @ values)
    return model.model.multi_modal_projector(torch.stack(mined))


def compute_features_written_out(model, picture, crops):
    """The image tokens of one picture at the high resolution, [channels, height, width]."""
    tower, aux = model.model.vision_tower, model.model.aux_vision_tower
    maps, state = [], aux.embeddings(picture[None])
    for stage in aux.encoder.stages:
        state = stage(state)
        maps.append(state)
    side = maps[0].shape[-1]
    high = torch.cat(
        [F.interpolate(one, size=(side, side), mode="bilinear", align_corners=False) for one in maps], dim=1
    )[0]

    def see(pixels):
        states = tower(pixels[None], output_hidden_states=True).hidden_states[-2][0, 1:]
        return states.T.view(-1, 4, 4)

    def shrink(one, size):
        return F.interpolate(one[None], size=(size, size), mode="bilinear", align_corners=False)[0]

    small = shrink(picture, 16 * crops)
    if crops == 1:
        return mine_written_out(model, see(small), high)
    half = side // 2
    found = [mine_written_out(model, see(shrink(small, 16)), shrink(high, half))]
    for row in range(2):
        for column in range(2):
            part = small[:, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            details = high[:, half * row : half * row + half, half * column : half * column + half]
            found.append(mine_written_out(model, see(part), details))
    return torch.cat(found)


@pytest.mark.parametrize("crops", [1, 2])
@torch.no_grad()
def test_image_tokens_are_the_forward_pass_written_out(crops):
    model, batch = make_mgm(crops), make_batch(crops)
    found = model.get_image_features(batch["pixel_values"]).pooler_output
    for tokens, picture in zip(found, batch["pixel_values"], strict=True):
        assert torch.allclose(tokens, compute_features_written_out(model, picture, crops), atol=1e-4)


@pytest.mark.parametrize("crops", [1, 2])
@torch.no_grad()
def test_it_is_saved_loaded_and_generates(crops, tmp_path):
    model, batch = make_mgm(crops), make_batch(crops)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(again) is MGMForConditionalGeneration and again.config.crops == crops
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    assert torch.equal(again(**inputs).logits, model(**inputs).logits)
    prompt = {name: inputs[name][:1] for name in inputs} | {"input_ids": inputs["input_ids"][:1, :-8]}
    prompt["attention_mask"] = torch.ones_like(prompt["input_ids"])
    written = again.generate(**prompt, max_new_tokens=4, do_sample=False, use_cache=True)
    assert torch.equal(written, model.generate(**prompt, max_new_tokens=4, do_sample=False, use_cache=False))


@pytest.mark.slow
@pytest.mark.parametrize("imports", ["import cal_cli, transformers", "import transformers, cal_cli"])
def test_whoever_imports_the_package_loads_it(imports, tmp_path):
    make_mgm().save_pretrained(tmp_path)
    load = f"transformers.AutoModelForImageTextToText.from_pretrained({str(tmp_path)!r})"
    code = f"{imports}; print(type({load}).__name__)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == "MGMForConditionalGeneration", result.stderr


def test_importing_the_package_alone_imports_no_models():
    code = "import sys, cal_cli; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"


@pytest.mark.parametrize("crops", [1, 2])
def test_the_contrast_is_that_of_the_masked_pass_and_reads_no_tower(crops):
    model, batch = make_mgm(crops), make_batch(crops)
    calls = []
    for tower in (model.model.vision_tower, model.model.aux_vision_tower):
        tower.register_forward_hook(lambda *unused: calls.append(1))
    found = contrast_logits(model, batch)
    assert len(calls) == 2  # each once, for the pass with the image
    delta = naive_delta(*naive_logits(model, batch), batch["labels"], "logit")
    expected = delta[batch["labels"][:, 1:] != -100]
    assert torch.allclose(found.delta, expected, atol=1e-5 * max(float(expected.abs().max()), 1.0))


def test_the_published_sizes():
    config = MGMConfig()
    assert config.aux_vision_config.hidden_sizes == CONVNEXT_LARGE["hidden_sizes"]
    with torch.device("meta"):
        model = MGMForConditionalGeneration(config)
    mining = sum(parameter.numel() for parameter in model.model.mining.parameters())
    # LayerNorms of 1,024, 2,880 and 2,880; projections 1,024 -> 1,024, and twice 2,880 -> 1,024
    assert mining == 2 * (1024 + 2 * 2880) + 1024 * 1025 + 2 * 1024 * 2881
    aux = sum(parameter.numel() for parameter in model.model.aux_vision_tower.parameters())
    assert aux == 196_227_264  # timm's convnext_large without its final norm and head
