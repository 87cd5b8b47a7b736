"""A tiny random model of every image-text-to-text type of `transformers`, with a batch of two rows of unequal length.

A type's default config is shrunk by the names of its fields; `OVERRIDES` has what a type needs beyond that. The models
are the library's own classes and are built without processors: `input_ids` holds as many image tokens as the model has
features for an image.
"""

import inspect
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

VOCABULARY, IMAGE, VIDEO, START, END, PAD = 120, 110, 111, 112, 113, 0
SIDE = 16  # of an image, in pixels

TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "attention_dropout": 0.0,
    "hidden_dropout": 0.0,
    "dropout": 0.0,
    "query_pre_attn_scalar": 8,
    # names of older families
    "embed_dim": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 48,
    "layers": 2,
    "attention_heads": 4,
    # experts
    "moe_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_num_experts": 4,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    # latent and indexed attention
    "kv_lora_rank": 8,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "index_topk": 64,
    "index_head_dim": 8,
    "index_n_heads": 2,
    # linear attention
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
VISION = {
    "hidden_size": 32,
    "embed_dim": 32,
    "intermediate_size": 48,
    "mlp_dim": 48,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "num_heads": 4,
    "head_dim": 8,
    "image_size": SIDE,
    "patch_size": 4,
    "out_hidden_size": 32,
    "text_hidden_size": 32,
    "projection_dim": 32,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0, 1],
    "window_size": 8,
    "fullatt_block_indexes": [1],
    "vision_use_head": False,
    "attention_dropout": 0.0,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
TOP = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "image_start_token_id": START,
    "image_end_token_id": END,
    "pad_token_id": PAD,
    "projector_hidden_size": 32,
    "out_hidden_size": 32,
    "image_grid_pinpoints": [[16, 32], [32, 16], [32, 32]],
    "vision_feature_layer": -1,
}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
MROPE_TEXT = {"text_config": {"rope_parameters": MROPE}}
GEMMA4 = {
    "text_config": {
        "global_head_dim": 8,
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 8,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "use_bidirectional_attention": "vision",
    },
    "vision_config": {"model_type": "gemma4_vision", "pooling_kernel_size": 2, "position_embedding_size": 8},
}
SIGLIP = {"model_type": "siglip_vision_model"}
SAM = {"image_size": 64, "output_channels": 8, "global_attn_indexes": [1], "downsample_channels": [16, 32]}
VQ = {"base_channels": 32, "channel_multiplier": [1, 1], "num_res_blocks": 1, "embed_dim": 8, "latent_channels": 8}
GATE = {name: {"rope_type": "default", "rope_theta": 10000.0} for name in ("sliding_attention", "full_attention")}
AUDIO = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 16, "d_model": 32, "output_dim": 32}
OMNI = {
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "audio_token_id": 114,
    "audio_config": {**AUDIO, "num_mel_bins": 8, "max_source_positions": 30},
}
# codes of the images' discrete tokens, for models that have them
CODES = {f"<|visual token {code:06d}|>": 60 + code for code in range(40)}
QFORMER = {"vocab_size": 120, "encoder_hidden_size": 32, "max_position_embeddings": 64}
OVERRIDES: dict[str, dict[str, Any]] = {
    "aria": {"projector_patch_to_query_dict": {16: 4}},
    "blip-2": {"num_query_tokens": 4, "qformer_config": QFORMER},
    "instructblip": {"num_query_tokens": 4, "qformer_config": QFORMER},
    "instructblipvideo": {"num_query_tokens": 4, "qformer_config": QFORMER},
    "kosmos-2.5": {"latent_query_num": 4, "vision_config": {"patch_embed_hidden_size": 32}},
    "kosmos-2": {"latent_query_num": 2},
    "chameleon": {
        "vocabulary_map": {
            **{f"IMGIMG{chr(65 + n // 8)}{chr(65 + n % 8)}Z": 60 + n for n in range(40)},
            "<image>": IMAGE,
        },
        "vq_config": {**VQ, "num_embeddings": 40, "resolution": SIDE},
        **{name: TEXT[name] for name in TEXT if name.startswith("num_")},
        "intermediate_size": 48,
    },
    "cohere_compass": {
        "text_config": {"layer_types": ["sliding_attention", "full_attention"] * 2, "rope_parameters": GATE}
    },
    "cosmos3_edge": {**MROPE_TEXT, "vision_config": {"num_patches": 16}},
    "deepseek_ocr2": {
        "vision_config": {"sam_config": SAM, "encoder_config": {"num_key_value_heads": 4}},
        "text_config": {"mlp_layer_types": ["dense", "sparse"] * 2, "topk_group": 1, "n_group": 1},
    },
    "deepseek_vl_hybrid": {"high_res_vision_config": {**SAM, "scale": 48}},
    "dots3_note": {
        "text_config": {
            "num_key_value_heads": 4,
            **{
                f"swa_{name}": value
                for name, value in {
                    "num_attention_heads": 4,
                    "num_key_value_heads": 4,
                    "q_lora_rank": 16,
                    "kv_lora_rank": 8,
                    "head_dim": 8,
                    "qk_nope_head_dim": 4,
                    "qk_rope_head_dim": 4,
                    "v_head_dim": 8,
                }.items()
            },
        },
        "vision_config": {
            "adapter_in_dim": 32,
            "adapter_out_dim": 32,
            "moe_intermediate_size": 16,
            "pyramid_num_routed": [-1, 4],
        },
        "audio_config": {
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "intermediate_size": 16,
            "num_attention_heads": 4,
            "adapter_input_size": 32,
            "adapter_out_dim": 32,
            "downsample_hidden_size": 8,
        },
    },
    "emu3": {
        "vocabulary_map": {**CODES, "<image>": IMAGE, "<|extra_200|>": 59},
        "vq_config": {**VQ, "codebook_size": 40, "hidden_size": 32},
    },
    "ernie4_5_vl_moe": {
        "text_config": {
            "moe_intermediate_size": [16, 16],
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "rope_parameters": {**MROPE, "mrope_section": [1, 1, 2]},
        }
    },
    "fast_vlm": {"vision_config": {**SIGLIP, "hidden_size": 16}},
    "fuyu": {"patch_size": 4, "image_size": SIDE},
    "gemma3": {"mm_tokens_per_image": 4},
    "shieldgemma2": {"mm_tokens_per_image": 4},
    "gemma3n": {
        "vision_soft_tokens_per_image": 16,
        "vision_config": {"vocab_size": 8, "vocab_offset": 108, "hidden_size": 32},
        "audio_config": {
            "vocab_size": 4,
            "vocab_offset": 116,
            "hidden_size": 32,
            "conf_num_attention_heads": 4,
            "conf_num_hidden_layers": 1,
        },
        "text_config": {
            "vocab_size_per_layer_input": 108,
            "hidden_size_per_layer_input": 8,
            "num_kv_shared_layers": 1,
            "laurel_rank": 4,
            "intermediate_size": [48] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    },
    "gemma4": GEMMA4,
    "gemma4_unified": {
        **GEMMA4,
        "vision_config": {
            "model_type": "gemma4_unified_vision",
            "pooling_kernel_size": 2,
            "mm_embed_dim": 32,
            "mm_posemb_size": 16,
            "output_proj_dims": 32,
        },
    },
    "git": {"num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48},
    "glm46v": MROPE_TEXT,
    "glm4v": MROPE_TEXT,
    "glm4v_moe": {"text_config": {"rope_parameters": {**MROPE, "partial_rotary_factor": 1.0}}},
    "glm5_next": {
        "text_config": {
            "num_key_value_heads": 4,
            "qk_rope_head_dim": 0,
            "head_dim": 0,
            "qk_nope_head_dim": 8,
            "linear_head_dim": 8,
            "linear_num_heads": 4,
            "index_kpool": 4,
        },
        "vision_config": {"projection_intermediate_size": 48},
    },
    "glm_ocr": MROPE_TEXT,
    "glmga": MROPE_TEXT,
    "granite4_vision": {
        "downsample_rate": "1/2",
        "deepstack_layer_map": [[-1, 0], [-2, 1]],
        "spatial_target_layers": [0, 1, 2, 3],
        "vision_config": {"hidden_size": 64},
    },
    "granite_docling": {"vision_config": {"scale_factor": 2}},
    "hunyuan_vl": MROPE_TEXT,
    "idefics2": {
        "perceiver_config": {
            "hidden_size": 32,
            "resampler_n_latents": 4,
            "resampler_depth": 1,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
        }
    },
    "inkling2": {
        "text_config": {
            "unpadded_vocab_size": 118,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "swa_head_dim": 8,
            "d_rel": 4,
            "rel_extent": 16,
            "sliding_window_size": 8,
        },
        "vision_config": {"projection_hidden_dim": 32, "posemb_grid_size": 4},
    },
    "janus": {
        "vq_config": {**VQ, "num_embeddings": 16, "num_patches": 4, "projection_dim": 32, "image_token_embed_dim": 32}
    },
    "kimi_k25": {
        "text_config": {"head_dim": 4, "num_key_value_heads": 4},
        "projection_hidden_size": 32,
        "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4},
    },
    "lfm2_vl": {"vision_config": {"num_patches": 16}, "text_config": {"layer_types": ["conv", "full_attention"] * 2}},
    "lfm3_vl": {"text_config": {"layer_types": ["conv", "sliding_attention", "conv", "full_attention"]}},
    "llama4": {
        "text_config": {"attention_chunk_size": 8, "intermediate_size_mlp": 48},
        "vision_config": {
            "intermediate_size": 128,
            "projector_input_dim": 32,
            "projector_output_dim": 32,
            "vision_output_dim": 32,
        },
    },
    "minimax_m3_vl": {"text_config": {"layer_types": ["full_attention", "minimax_m3_sparse"] * 2}},
    "mistral_large4": {"text_config": {"num_key_value_heads": 4}},
    "mllama": {
        "text_config": {
            "cross_attention_layers": [1],
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
        "vision_config": {
            "num_global_layers": 1,
            "attention_heads": 4,
            "vision_output_dim": 64,
            "intermediate_layers_indices": [0],
            "max_num_tiles": 2,
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
        },
    },
    "molmo2": {
        "image_patch_id": IMAGE,
        "image_start_token_id": START,
        "image_end_token_id": END,
        "low_res_image_start_token_id": 114,
        "frame_start_token_id": 115,
        "frame_end_token_id": 116,
        "vision_config": {"image_size": [SIDE, SIDE]},
        "text_config": {"additional_vocab_size": 8},
        "adapter_config": {"vision_feature_layer": [0, 1], "text_hidden_size": 32},
    },
    "muse_glimmer": {"out_hidden_size": 128, "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4}},
    "muse_spark": {
        "out_hidden_size": 128,
        "vision_config": {"pos_emb_height": 4, "pos_emb_width": 4},
        "text_config": {"moe_hidden_size": 16},
        "audio_config": {"out_hidden_size": 32, "hidden_sizes": (8, 8, 8, 8), "depths": (1, 1, 1, 1)},
    },
    "nemotron_h_omni": {
        "vision_hidden_size": 32,
        "text_config": {
            "layers_block_type": ["linear_attention", "moe", "full_attention", "mlp"],
            "ssm_state_size": 8,
            "mamba_num_heads": 4,
            "mamba_head_dim": 8,
            "n_groups": 2,
            "chunk_size": 4,
        },
        "vision_config": {"video_temporal_patch_size": 2, "max_img_size": 32},
    },
    "ovis2": {"visual_indicator_token_ids": [114, 115, 116, 117, 118], "vision_config": {"vocab_size": 16}},
    "paddleocr_vl": {"text_config": {"rope_parameters": MROPE}},
    "paligemma": {"projection_dim": 32},
    "perception_lm": {"vision_config": {**SIGLIP, "model_args": {"embed_dim": 32}}, "vision_use_cls_token": False},
    "qwen2_vl": MROPE_TEXT,
    "qwen2_5_vl": MROPE_TEXT,
    "qwen2_5_omni_thinker": {**MROPE_TEXT, **OMNI},
    "qwen3_omni_moe_thinker": OMNI,
    "qwen4_exp": {
        "text_config": {
            "ple_layer_ids": [1],
            "ple_embed_dim": 32,
            "heads_per_ngram": 4,
            "ngram_vocab_size_base": 50,
            "split_ngram_parts": 1,
            "make_ngram_vocab_size_divisible_by": 8,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 8,
            "indexer_budget": 64,
            "indexer_compress_ratio": 4,
        }
    },
    "step3p7": {
        "vision_config": {"image_size": 32, "max_position_embeddings": 64},
        "text_config": {
            "share_expert_dim": 16,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_parameters": GATE,
            "num_sliding_attention_heads": 4,
            "sliding_window": 8,
        },
    },
    "unlimited_ocr": {
        "vision_config": {"sam_config": {**SAM, "downsample_channels": [16, 32]}},
        "text_config": {"num_key_value_heads": 4},
    },
}
# other decoders of a type
VARIANTS = {"llava_sliding": ("llava", {"text_config": {"model_type": "mistral", "sliding_window": 12}})}
NOT_APPLICABLE = {
    **dict.fromkeys(
        ("florence2", "pix2struct", "pp_formulanet", "t5gemma2", "udop", "vision-encoder-decoder"), "encoder-decoder"
    ),
    "diffusion_gemma": "diffusion",
    "evolla": "proteins",
    "mistral4": "text only",
    "pi0": "actions",
}


def shrink(default: PreTrainedConfig, values: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The fields of a config that are made small, those of its sub-configs too."""
    known = {name: value for name, value in values.items() if name in default.to_dict()}
    if getattr(default, "sliding_window", None) is not None:
        known["sliding_window"] = 8
    known |= {
        name: value for name, value in more.items() if not isinstance(value, dict) or name not in default.sub_configs
    }
    for name in default.sub_configs:
        sub, own = getattr(default, name, None), more.get(name, {})
        if isinstance(sub, PreTrainedConfig) or own:
            role = TEXT if name == "text_config" else {} if name == "audio_config" else VISION
            if own.get("model_type", getattr(sub, "model_type", None)) != getattr(sub, "model_type", None):
                sub = AutoConfig.for_model(own["model_type"])
            known[name] = {**shrink(sub, role, own), "model_type": own.get("model_type", sub.model_type)}
    return known


def make_config(name: str, changes: dict[str, Any] | None = None) -> PreTrainedConfig:
    """A type's config, made small; `changes` are values of it and of its sub-configs."""
    base, more = VARIANTS.get(name, (name, OVERRIDES.get(name, {})))
    for key, value in (changes or {}).items():
        more = {**more, key: {**more.get(key, {}), **value} if isinstance(value, dict) else value}
    default = AutoConfig.for_model(base)
    made = AutoConfig.for_model(default.model_type, **shrink(default, TOP, more))
    if name == "gemma3n":  # a small tower in place of timm's
        fields = {field: getattr(made.vision_config, field) for field in ("vocab_size", "vocab_offset", "rms_norm_eps")}
        tower = AutoConfig.for_model(**SIGLIP, **shrink(AutoConfig.for_model(**SIGLIP), VISION, {}), **fields)
        object.__setattr__(made, "vision_config", tower)  # past the check of its class
    return made


def make(name: str, seed: int = 0, padding: str = "right", text_row: bool = False) -> tuple[Any, dict[str, Any]]:
    """Make a model, in evaluation mode, and its batch; `text_row` adds a third row, without an image."""
    model = make_model(name, seed)
    return model, make_batch(model, name, padding, text_row)


def make_model(name: str, seed: int = 0) -> Any:
    """A model with weights large enough that logits and deltas are far from 0."""
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(make_config(name))
    with torch.no_grad():
        for field, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
            elif "gate" in field:
                parameter.fill_(1.0)  # of cross-attention, closed at first
    return model.eval()


def make_pixels(model: Any, name: str) -> dict[str, Any]:
    """The inputs that hold the images, one image for each of two rows."""
    accepts = inspect.signature(model.base_model.forward).parameters
    vision = getattr(model.config, "vision_config", None)
    grid, patches = torch.tensor([[1, 4, 4], [1, 4, 4]]), torch.randn(32, 3, 4, 4)
    if name == "video_llama_3":
        return {"pixel_values": patches.flatten(1), "image_grid_thw": grid, "image_merge_sizes": torch.tensor([2, 2])}
    if name == "kimi_k25":
        return {"pixel_values": patches, "image_grid_thw": grid}
    if name == "paddleocr_vl":
        return {"pixel_values": patches, "image_grid_thw": grid}
    if name == "inkling2":
        return {"pixel_values": torch.randn(8, 8, 8, 3), "image_grid_thw": torch.tensor([[1, 2, 2], [1, 2, 2]])}
    if name.startswith("minicpm"):
        return {"pixel_values": torch.randn(1, 3, 4, 4 * 32), "target_sizes": torch.tensor([[4, 4], [4, 4]])}
    if name == "lfm2_vl":
        shapes, mask = torch.tensor([[4, 4], [4, 4]]), torch.ones(2, 16, dtype=torch.long)
        return {"pixel_values": torch.randn(2, 16, 48), "spatial_shapes": shapes, "pixel_attention_mask": mask}
    if name in ("gemma4", "gemma4_unified"):
        places = torch.cartesian_prod(torch.arange(4), torch.arange(4)).flip(1).expand(2, -1, -1)
        if name == "gemma4_unified":
            places = torch.cartesian_prod(torch.arange(2), torch.arange(2)).flip(1).expand(2, -1, -1)
            return {"pixel_values": torch.rand(2, 4, 192), "image_position_ids": places}
        return {"pixel_values": torch.rand(2, 16, 48), "image_position_ids": places}
    if name == "molmo2":
        pooling = torch.arange(32).view(2, 2, 2, 2, 2).transpose(2, 3).reshape(8, 4)
        grids = torch.tensor([[2, 2, 0, 0], [2, 2, 0, 0]])
        return {
            "pixel_values": torch.randn(2, 16, 48),
            "image_token_pooling": pooling,
            "image_grids": grids,
            "image_num_crops": torch.tensor([1, 1]),
        }
    if name == "mllama":
        return {
            "pixel_values": torch.randn(2, 1, 2, 3, SIDE, SIDE),
            "aspect_ratio_ids": torch.tensor([[1], [2]]),
            "aspect_ratio_mask": torch.tensor([[[1, 0]], [[1, 1]]]),
        }
    if name in ("instructblip", "instructblipvideo"):
        frames = (2, 2) if name == "instructblipvideo" else (2,)
        return {
            "pixel_values": torch.randn(*frames, 3, SIDE, SIDE),
            "qformer_input_ids": torch.tensor([[1, 2], [3, 4]]),
        }
    if name == "nemotron_h_omni":
        return {"pixel_values": torch.randn(32, 48), "image_grid_hw": torch.tensor([[4, 4], [4, 4]])}
    if name == "fuyu":
        return {"pixel_values": torch.randn(2, 16, 48)}
    if "image_grid_thw" in accepts:
        time = getattr(vision, "temporal_patch_size", getattr(vision, "patch_temporal", 1))
        return {"pixel_values": torch.randn(32, 3 * time * vision.patch_size**2), "image_grid_thw": grid}
    if name == "inkling_mm_model":
        return {"pixel_values": torch.randn(4, 2, 4, 4, 3)}
    if name == "kosmos-2":
        return {"pixel_values": torch.randn(2, 3, SIDE, SIDE)}
    if name == "idefics":
        return {"pixel_values": torch.randn(2, 1, 3, SIDE, SIDE), "image_attention_mask": torch.ones(2, 24, 1).long()}
    if name in ("llava_next", "llava_next_video", "llava_onevision", "granite4_vision"):
        return {"pixel_values": torch.randn(2, 5, 3, SIDE, SIDE), "image_sizes": torch.tensor([[16, 32], [30, 17]])}
    side = 64 if name in ("deepseek_ocr2", "unlimited_ocr") else 32 if name == "step3p7" else SIDE
    pixels = {"pixel_values": torch.randn(2, 3, side, side)}
    if name in ("idefics2", "idefics3", "smolvlm", "granite_docling", "perception_lm"):
        pixels = {"pixel_values": torch.randn(2, 1, 3, SIDE, SIDE)}
    if name == "granite_docling":
        pixels["pixel_attention_mask"] = torch.ones(2, 1, dtype=torch.bool)
    if name == "deepseek_vl_hybrid":
        pixels["high_res_pixel_values"] = torch.randn(2, 3, 64, 64)
    if "image_sizes" in accepts and not name.startswith(("llava", "vipllava")):
        pixels["image_sizes"] = torch.tensor([[SIDE, SIDE], [SIDE, SIDE]])
    return pixels


def count_features(model: Any, pixels: dict[str, Any]) -> list[int]:
    """The number of each image's features, and so of its tokens."""
    if model.config.model_type == "mllama":
        return [1, 1]
    if model.config.model_type == "fuyu":
        return [16, 16]
    if model.config.model_type in ("blip", "git", "idefics", "inkling_mm_model", "kosmos-2", "kosmos-2.5"):
        return [2, 2]
    if model.config.model_type.startswith("instructblipvideo"):
        return [8, 8]
    with torch.no_grad():
        features = model.base_model.get_image_features(**pixels)
    if getattr(features, "deepstack_features", None) and model.config.model_type == "granite4_vision":
        return [len(image) for image in features.deepstack_features[0][1]]
    pooled = features.pooler_output
    return [len(image) for image in (features.last_hidden_state if pooled is None else pooled)]


def make_batch(model: Any, name: str, padding: str = "right", text_row: bool = False) -> dict[str, Any]:
    """Two texts around an image each, of which the numbers from 30 to 59 are supervised."""
    pixels = make_pixels(model, name)
    counts = count_features(model, pixels)
    token = VIDEO if name == "instructblipvideo" else IMAGE
    before, after = ([5, 6, 7], [8]), ([11, 12, 13, 14, 15, 16, 17, 18], [21, 22, 23, 24])
    rows = [
        [1, *before[row], START, *[token] * counts[row], END, *after[row], *range(30 + row, 38 + 2 * row)]
        for row in range(2)
    ]
    if text_row:
        rows.append([1, 9, 10, 19, *range(40, 46)])
        pixels |= add_blank_image(pixels) if name in ROWS_OF_IMAGES else {}
    length = max(map(len, rows))
    fill = [[PAD] * (length - len(row)) for row in rows]
    ids = torch.tensor([row + pad if padding == "right" else pad + row for row, pad in zip(rows, fill, strict=True)])
    batch = {**pixels, "input_ids": ids, "attention_mask": (ids != PAD).long()}
    batch["labels"] = ids.masked_fill((ids < 30) | (ids >= 60), -100)
    accepts = inspect.signature(model.base_model.forward).parameters
    shown = (ids == token).long()
    batch |= {key: shown for key in ("mm_token_type_ids", "token_type_ids") if key in accepts}
    if name == "paligemma":  # marks the answer
        batch["token_type_ids"] = (batch["labels"] != -100).long()
    if name == "kosmos-2":
        batch["image_embeds_position_mask"] = shown
    if name == "mllama":
        batch["cross_attention_mask"] = (shown.cumsum(1) > 0).long()[:, :, None, None].repeat(1, 1, 1, 2)
    return batch


# types whose inputs hold the images of a row together, so that a row without one needs a blank place
ROWS_OF_IMAGES = ("idefics", "idefics2", "idefics3", "smolvlm", "granite_docling", "mllama")


def add_blank_image(pixels: dict[str, Any]) -> dict[str, Any]:
    """Inputs with a third row that holds no image."""
    return {key: torch.cat([value, torch.zeros_like(value[:1])]) for key, value in pixels.items()}
