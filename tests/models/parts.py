"""Small parts of the kinds that LLaVA is made of, saved as on the hub: a Llama with its tokenizer, a CLIP."""

import json

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cal_cli.models.llava_templates import SYSTEM
from cal_cli.toy.scenes import make_scenes


def llama_tokenizer():
    """Llama's kind of tokenizer (words with a space before them, any other byte as itself), learnt from the world."""
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    texts = [turn["value"] for entry in make_scenes(n=300).entries for turn in entry["conversations"]]
    bpe.train_from_iterator([*texts, SYSTEM, "USER: ASSISTANT: "], trainer)
    learnt = json.loads(bpe.to_str())["model"]
    return LlamaTokenizer(vocab=learnt["vocab"], merges=list(map(tuple, learnt["merges"])), add_bos_token=True)


def save_language_model(folder, tie=False, width=64, layers=2):
    """A LlamaForCausalLM and its tokenizer."""
    tokenizer = llama_tokenizer()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        tie_word_embeddings=tie,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_vision_tower(folder, side=28):
    """A whole CLIP, as LLaVA's towers lie on the hub, of 4 x 4 patches; and its image processor."""
    vision = {
        "image_size": side,
        "patch_size": 7,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
    }
    text = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(1)
    CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=32)).save_pretrained(folder)
    size = {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    CLIPImageProcessorPil(**size).save_pretrained(folder)
    return str(folder)
