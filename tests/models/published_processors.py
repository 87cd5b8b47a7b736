"""Small models of types that people train today, with the library's own processors of them.

`python -m tests.models.published_processors qwen3_vl folder` saves one. Most processors hold one for videos too, which
needs torchvision: see `tests.torchvision_operators`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES
from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

from tests.models.published_kinds import byte_tokenizer
from tests.objective.families import make_config

# a conversation with the marks of a family around turns and images, and with those of its answers; our own words
CHAT = """\
{{- bos_token }}{% for message in messages %}{{ "BEGIN" + message.role + "\\n" }}
{%- if message.role == "assistant" %}THOUGHT[{% for part in message.content %}{{ part.text }}{% endfor %}{{ "END" }}]
{%- else %}{% for part in message.content %}{{ "IMAGE" if part.type == "image" else part.text }}{% endfor %}
{{- "END" }}{% endif %}{{ "\\n" }}
{%- endfor %}{% if add_generation_prompt %}{{ "BEGINassistant\\nPROMPT" }}{% endif %}"""
# what was thought, which is empty, stands before the last answer alone, as in Qwen3.5
THOUGHT = "<think>\\n\\n</think>\\n\\n"
THINKING = CHAT.replace("THOUGHT", f'{{% if loop.last %}}{{{{ "{THOUGHT}" }}}}{{% endif %}}').replace("PROMPT", THOUGHT)
QWEN = {
    "marks": ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|im_start|>"],
    "turn": ("<|im_start|>", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>"),
    "images": {"patch_size": 4, "size": {"shortest_edge": 256, "longest_edge": 512}},
    "tokens": {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    },
}
TILES = ("tile_x_separator", "tile_y_separator")
SQUARE = {"size": {"height": 16, "width": 16}}
PROCESSORS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_5": {**QWEN, "template": THINKING},
    "gemma3": {
        "marks": {"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>", "sot": "<start>"},
        "turn": ("<start>", "<boi>", "<end>"),
        "images": SQUARE,
        "processor": {"image_seq_length": 4},
        "tokens": {"image_token_id": "<image>", "boi_token_index": "<boi>", "eoi_token_index": "<eoi>"},
    },
    "gemma4": {
        "marks": {
            "image_token": "<|image|>",
            "boi_token": "<|image>",
            "eoi_token": "<image|>",
            "audio_token": "<|audio|>",
            "boa_token": "<|audio>",
            "eoa_token": "<audio|>",
            "sot": "<|turn>",
        },
        "turn": ("<|turn>", "<|image|>", "<turn|>"),
        "images": {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70},
        "processor": {"image_seq_length": 4},
        "tokens": {"image_token_id": "<|image|>", "boi_token_id": "<|image>", "eoi_token_id": "<image|>"},
        "config": {"vision_config": {"position_embedding_size": 128}},
    },
    "internvl": {
        "marks": {
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
            "sot": "<|im_start|>",
        },
        "turn": ("<|im_start|>", "<IMG_CONTEXT>\\n", "<|im_end|>"),
        "images": SQUARE,
        "processor": {"image_seq_length": 4},
        "tokens": {"image_token_id": "<IMG_CONTEXT>"},
    },
    "glm4v": {
        "marks": ["<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>", "<|turn|>"],
        "turn": ("<|turn|>", "<|begin_of_image|><|image|><|end_of_image|>", "<|user|>"),
        "images": {"patch_size": 4, "size": {"shortest_edge": 128, "longest_edge": 1024}},
        "tokens": {
            "image_token_id": "<|image|>",
            "video_token_id": "<|video|>",
            "image_start_token_id": "<|begin_of_image|>",
            "image_end_token_id": "<|end_of_image|>",
        },
    },
    "mistral3": {
        "marks": ["[IMG]", "[IMG_BREAK]", "[IMG_END]", "[INST]"],
        "turn": ("[INST]", "[IMG]", "[/INST]"),
        "images": {"size": {"longest_edge": 16}, "patch_size": {"height": 4, "width": 4}},
        "processor": {"patch_size": 4, "spatial_merge_size": 2},
        "tokens": {"image_token_id": "[IMG]"},
    },
    "smolvlm": {
        "marks": ["<fake_token_around_image>", "<image>", "<global-img>", "<|im_start|>"]
        + [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)],
        "turn": ("<|im_start|>", "<image>", "<end_of_utterance>"),
        "images": {"size": {"longest_edge": 32}, "max_image_size": {"longest_edge": 16}},
        "processor": {"image_seq_len": 4},
        "tokens": {"image_token_id": "<image>"},
    },
    "llava_onevision": {
        "marks": ["<image>", "<video>", "<|im_start|>"],
        "turn": ("<|im_start|>", "<image>\\n", "<|im_end|>"),
        "images": {**SQUARE, "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]]},
        "processor": {"num_image_tokens": 16, "vision_feature_select_strategy": "full"},
        "tokens": {"image_token_id": "<image>", "video_token_id": "<video>"},
    },
    "llama4": {
        "marks": [f"<|{mark}|>" for mark in ("image", "image_start", "image_end", "patch", *TILES, "header_start")],
        "turn": ("<|header_start|>", "<|image|>", "<|eot|>"),
        "images": {**SQUARE, "max_patches": 4},
        "processor": {"patch_size": 4},
        "tokens": {"image_token_id": "<|patch|>"},
    },
}


def find_class(names: Any) -> Any:
    """The class of a type's image or video processor, that with Pillow where there is one."""
    name = names.get("pil", names["torchvision"])
    if hasattr(transformers, name):
        return getattr(transformers, name)
    return None


def make_processor(name: str, marks: tuple[str, str] = ("", "")) -> Any:
    """The library's processor of a type, for images of 16 pixels or a few tiles; `marks` are put around answers."""
    kind = PROCESSORS[name]
    begin, image, end = kind["turn"]
    tokenizer = byte_tokenizer(kind["marks"], eos_token=end, bos_token="<bos>", pad_token="<pad>")
    template = kind.get("template", CHAT.replace("THOUGHT", "").replace("PROMPT", ""))
    for word, text in (("[", marks[0]), ("]", marks[1]), ("BEGIN", begin), ("IMAGE", image), ("END", end)):
        template = template.replace(word, text)
    parts = {"image_processor": find_class(IMAGE_PROCESSOR_MAPPING_NAMES[name])(**kind["images"])}
    if name in VIDEO_PROCESSOR_MAPPING_NAMES:
        parts["video_processor"] = find_class(VIDEO_PROCESSOR_MAPPING_NAMES[name])()
    if name == "gemma4":
        parts["feature_extractor"] = transformers.Gemma4AudioFeatureExtractor()
    options = kind.get("processor", {})
    return getattr(transformers, PROCESSOR_MAPPING_NAMES[name])(
        tokenizer=tokenizer, chat_template=template, **parts, **options
    )


def save(name: str, folder: Path) -> Path:
    """Save a model of random weights with its processor."""
    processor = make_processor(name)
    tokenizer = processor.tokenizer
    ids = {key: getattr(tokenizer, key) for key in ("pad_token_id", "bos_token_id", "eos_token_id")}
    words = len(tokenizer) + 8  # loading adds the end of a text to some
    text = {"vocab_size": words, "max_position_embeddings": 1024, **ids}
    if name == "gemma4":
        text["vocab_size_per_layer_input"] = words
    tokens = {key: tokenizer.convert_tokens_to_ids(token) for key, token in PROCESSORS[name]["tokens"].items()}
    tokens |= {
        key.replace("_id", "_index"): value for key, value in tokens.items() if key.startswith(("image", "video"))
    }
    changes = {**tokens, "pad_token_id": ids["pad_token_id"], "text_config": text, **PROCESSORS[name].get("config", {})}
    torch.manual_seed(0)
    AutoModelForImageTextToText.from_config(make_config(name, changes)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    save(sys.argv[1], Path(sys.argv[2]))
