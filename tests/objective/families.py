"""Tiny random models of many families, each with a batch of two samples of unequal length, one image in each.

Built from the library's own classes, without processors: `input_ids` holds as many image tokens as the model puts
features there. Two texts surround the images; the second sample is padded on the right.
"""

import torch
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    Gemma2Config,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

VOCABULARY, IMAGE, PAD = 120, 110, 0
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION = {
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
QWEN_VISION = {
    "depth": 2,
    "embed_dim": 32,
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_heads": 4,
    "patch_size": 4,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def config(model_type, text, vision, **more):
    return AutoConfig.for_model(model_type, text_config=text, vision_config=vision, **more)


def llava():
    return config("llava", LlamaConfig(**TEXT), CLIPVisionConfig(**VISION), image_token_index=IMAGE), [16, 16]


def llava_next():
    grid = [[16, 32], [32, 16], [32, 32]]
    made = config(
        "llava_next",
        LlamaConfig(**TEXT),
        CLIPVisionConfig(**VISION),
        image_token_index=IMAGE,
        image_grid_pinpoints=grid,
    )
    return made, None


def llava_onevision():
    made = config(
        "llava_onevision",
        Qwen2Config(**TEXT),
        SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=IMAGE,
        image_grid_pinpoints=[[16, 32], [32, 16], [32, 32]],
        vision_feature_layer=-1,
    )
    return made, None


def qwen2_vl():
    vision = {**QWEN_VISION, "mlp_ratio": 2}
    return config("qwen2_vl", {**TEXT, "rope_parameters": ROPE}, vision, image_token_id=IMAGE, **QWEN_TOKENS), [4, 4]


def qwen2_5_vl():
    vision = {**QWEN_VISION, "window_size": 8, "fullatt_block_indexes": [1]}
    return config("qwen2_5_vl", {**TEXT, "rope_parameters": ROPE}, vision, image_token_id=IMAGE, **QWEN_TOKENS), [4, 4]


def qwen3_vl():
    vision = {**QWEN_VISION, "deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
    text = {**TEXT, "head_dim": 8, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    return config("qwen3_vl", text, vision, image_token_id=IMAGE, **QWEN_TOKENS), [4, 4]


QWEN_TOKENS = {"video_token_id": 111, "vision_start_token_id": 112, "vision_end_token_id": 113}


def idefics3():
    return config("idefics3", LlamaConfig(**TEXT), VISION, image_token_id=IMAGE, scale_factor=2), [4, 4]


def smolvlm():
    return config("smolvlm", LlamaConfig(**TEXT), VISION, image_token_id=IMAGE, scale_factor=2), [4, 4]


def paligemma():
    text = Gemma2Config(**TEXT, head_dim=8, sliding_window=128, final_logit_softcapping=5.0, query_pre_attn_scalar=8)
    vision = SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False)
    return config("paligemma", text, vision, image_token_index=IMAGE, projection_dim=32, hidden_size=32), [16, 16]


def gemma3():
    text = Gemma3TextConfig(**TEXT, head_dim=8, sliding_window=8, query_pre_attn_scalar=8, layer_types=GEMMA_LAYERS)
    vision = SiglipVisionConfig(**VISION, vision_use_head=False)
    return config("gemma3", text, vision, image_token_index=IMAGE, mm_tokens_per_image=4), [4, 4]


GEMMA_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]


def internvl():
    vision = {**VISION, "image_size": [16, 16], "patch_size": [4, 4]}
    made = config("internvl", Qwen2Config(**TEXT), vision, image_token_id=IMAGE, downsample_ratio=0.5)
    return made, [4, 4]


def mistral3():
    vision = PixtralVisionConfig(**VISION)
    text = MistralConfig(**TEXT, head_dim=8, sliding_window=None)
    return config("mistral3", text, vision, image_token_index=IMAGE, spatial_merge_size=2, vision_feature_layer=-1), [
        4,
        4,
    ]


def llava_sliding():
    """A decoder that builds sliding-window masks itself: columns count, so images stand in the window's way."""
    text = MistralConfig(**TEXT, head_dim=8, sliding_window=12)
    return config("llava", text, CLIPVisionConfig(**VISION), image_token_index=IMAGE), [16, 16]


def mllama():
    text = {**TEXT, "cross_attention_layers": [1], "num_hidden_layers": 3}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}
    vision = {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 4,
        "vision_output_dim": 64,
        "intermediate_layers_indices": [0],
        "max_num_tiles": 2,
        "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
    }
    return config("mllama", text, vision, image_token_index=IMAGE), [1, 1]


def make(build, seed=0):
    """A model with weights large enough that logits and deltas are far from 0, and its batch."""
    made, counts = build()
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            elif "gate" in name:
                parameter.fill_(1.0)  # of cross-attention, shut at first
    name = made.model_type
    batch = {"pixel_values": torch.randn(2, 3, 16, 16)}
    if name in ("llava_next", "llava_onevision"):
        batch["image_sizes"] = torch.tensor([[16, 32], [30, 17]])
        batch["pixel_values"] = torch.randn(2, 5, 3, 16, 16)
        counts = unpadded_counts(model, batch)
    elif name.startswith("qwen"):
        batch["pixel_values"] = torch.randn(32, 3 * 2 * 4 * 4)
        batch["image_grid_thw"] = torch.tensor([[1, 4, 4], [1, 4, 4]])
    elif name in ("idefics3", "smolvlm"):
        batch["pixel_values"] = torch.randn(2, 1, 3, 16, 16)
    elif name == "mistral3":
        batch["image_sizes"] = torch.tensor([[16, 16], [16, 16]])
    elif name == "mllama":
        batch["pixel_values"] = torch.randn(2, 1, 2, 3, 16, 16)
        batch["aspect_ratio_ids"] = torch.tensor([[1], [2]])
        batch["aspect_ratio_mask"] = torch.tensor([[[1, 0]], [[1, 1]]])
    before, after = ([5, 6, 7], [8]), ([11, 12, 13, 14, 15, 16, 17, 18], [21, 22, 23, 24])
    rows = [[1, *before[row], *[IMAGE] * counts[row], *after[row], *range(30 + row, 38 + 2 * row)] for row in range(2)]
    length = max(map(len, rows))
    ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
    batch["input_ids"], batch["attention_mask"] = ids, (ids != PAD).long()
    answer = (ids >= 30) & (ids < 60)
    batch["labels"] = ids.masked_fill(~answer, -100)
    if name == "paligemma":
        batch["token_type_ids"] = answer.long()
    if name == "gemma3":
        batch["token_type_ids"] = (ids == IMAGE).long()
    if name.startswith("qwen"):
        batch["mm_token_type_ids"] = (ids == IMAGE).long()
    if name == "mllama":
        batch["cross_attention_mask"] = ((ids == IMAGE).cumsum(1) > 0).long()[:, :, None, None].repeat(1, 1, 1, 2)
    return model.eval(), batch


def unpadded_counts(model, batch):
    """How many features AnyRes makes of each picture, by the model's own account."""
    pooled = model.model.get_image_features(batch["pixel_values"], image_sizes=batch["image_sizes"]).pooler_output
    return [len(features) for features in pooled]


FAMILIES = [
    llava,
    llava_next,
    llava_onevision,
    qwen2_vl,
    qwen2_5_vl,
    qwen3_vl,
    idefics3,
    smolvlm,
    paligemma,
    gemma3,
    internvl,
    mistral3,
    llava_sliding,
    mllama,
]
