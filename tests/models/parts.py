"""Small parts of the kinds that LLaVA is made of, saved as on the hub: a Llama with its tokenizer, a CLIP."""

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, LlamaTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cal_cli.models.llava import SYSTEM
from cal_cli.toy.world import make_scenes


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


def train_sentencepiece(folder):
    """A `tokenizer.model` of Llama's kind: SentencePiece's byte pairs, each digit alone, any other byte as itself."""
    texts = [turn["value"] for entry in make_scenes(n=300).entries for turn in entry["conversations"]]
    numbers = [f"{number} {number * 7}" for number in range(200)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, SYSTEM, "USER: ASSISTANT: ", *numbers]),
        model_prefix=str(Path(folder) / "tokenizer"),
        model_type="bpe",
        vocab_size=700,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        allow_whitespace_only_pieces=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    (Path(folder) / "tokenizer.vocab").unlink()
    return sentencepiece.SentencePieceProcessor(model_file=str(Path(folder) / "tokenizer.model"))


def save_like_vicuna(folder, width=64, layers=2):
    """A language model in the files of Vicuna v1.5: no tokenizer.json, and sampling values without do_sample."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    words = train_sentencepiece(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=words.vocab_size(),
        hidden_size=width,
        intermediate_size=3 * width // 2,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=4096,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size="200KB")
    special = {
        name: {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
        for name, token in (("bos_token", "<s>"), ("eos_token", "</s>"), ("unk_token", "<unk>"))
    }
    files = {
        "generation_config": {
            "_from_model_config": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
            "max_length": 4096,
            "temperature": 0.9,
            "top_p": 0.6,
            "transformers_version": "4.31.0",
        },
        "special_tokens_map": {**special, "pad_token": "<unk>"},
        "tokenizer_config": {
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
            "legacy": False,
            "model_max_length": 4096,
            "pad_token": None,
            "padding_side": "right",
            "sp_model_kwargs": {},
            "tokenizer_class": "LlamaTokenizer",
            **{name: {"__type": "AddedToken", **token} for name, token in special.items()},
        },
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2))
    assert not (folder / "tokenizer.json").exists()
    return str(folder)


def save_like_clip(folder):
    """A vision tower in the files of CLIP ViT-L/14-336, whose image processor is of an early version."""
    save_vision_tower(folder)
    for path in Path(folder).glob("*processor_config.json"):
        path.unlink()
    config = {
        "crop_size": 28,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 28,
    }
    (Path(folder) / "preprocessor_config.json").write_text(json.dumps(config))
    return str(folder)
