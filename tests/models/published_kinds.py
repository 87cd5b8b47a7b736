"""Small models of published kinds with their real processors, whose chat templates mark no answers, as on the hub."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3Processor,
    Idefics3Config,
    Idefics3Processor,
    PreTrainedTokenizerFast,
)
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from cal_cli.toy.world import make_scenes
from tests.objective.families import VISION

# each family's way of writing a conversation, our own words
SMOLVLM = """\
<|im_start|>{% for message in messages %}{{ message.role | capitalize }}:
{%- for part in message.content %}{{ "<image>" if part.type == "image" else " " + part.text }}{% endfor %}
{{- "<end_of_utterance>\\n" }}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"""
GEMMA = """\
{{- bos_token }}{% for message in messages %}
{{- "<start_of_turn>" + ("model" if message.role == "assistant" else message.role) + "\\n" }}
{%- for part in message.content %}{{ "<start_of_image>" if part.type == "image" else part.text | trim }}{% endfor %}
{{- "<end_of_turn>\\n" }}{% endfor %}{% if add_generation_prompt %}{{ "<start_of_turn>model\\n" }}{% endif %}"""
TEXT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
}


def byte_tokenizer(special, **named):
    """A tokenizer of bytes and the world's words, as GPT-2's kind cuts them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokens = [*named.values(), *(special.values() if isinstance(special, dict) else special)]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=tokens, initial_alphabet=alphabet, show_progress=False)
    texts = (turn["value"] for entry in make_scenes(n=200).entries for turn in entry["conversations"])
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, extra_special_tokens=special, **named)


def smolvlm():
    """Idefics3's processor: a picture becomes tiles with text between them."""
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    marks = ["<|im_start|>", "<fake_token_around_image>", "<image>", "<global-img>", *tiles]
    tokenizer = byte_tokenizer(marks, eos_token="<end_of_utterance>", pad_token="<|endoftext|>")
    images = Idefics3ImageProcessorPil(size={"longest_edge": 32}, max_image_size={"longest_edge": 16})
    return Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=SMOLVLM)


def gemma3():
    """Gemma 3's processor: one placeholder becomes other tokens with empty lines around them."""
    marks = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    marks |= {"sot_token": "<start_of_turn>", "eot_token": "<end_of_turn>"}
    tokenizer = byte_tokenizer(marks, eos_token="<eos>", bos_token="<bos>", pad_token="<pad>")
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    return Gemma3Processor(images, tokenizer, image_seq_length=4, chat_template=GEMMA)


def save(name, folder):
    """A model with random weights and its processor."""
    processor = {"smolvlm": smolvlm, "gemma3": gemma3}[name]()
    tokenizer = processor.tokenizer
    ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    text = {**TEXT, **ids, "vocab_size": len(tokenizer)}
    if name == "smolvlm":
        text["model_type"] = "llama"
        vision = {**VISION, "model_type": "idefics3_vision"}
        token = processor.image_token_id
        config = Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, image_token_id=token)
    else:
        vision = {**VISION, "model_type": "siglip_vision_model", "vision_use_head": False}
        marks = {f"{part}_token_index": getattr(tokenizer, f"{part}_token_id") for part in ("image", "boi", "eoi")}
        config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **marks)
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
