"""The default model: a LLaVA with 1.3 M parameters and its own tokenizer and processor.

`LlavaForConditionalGeneration` with a CLIP vision tower (64 x 64 pixels, patches of 16: 16 image tokens) and a
Llama decoder. The tokenizer is a byte-level BPE trained on the texts of `data=scenes`: each of
their words is one token, and any other text falls back to bytes, so that the model can also read users' own data.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from cal_cli.models.load import ModelSource
from cal_cli.runtime.errors import InputError
from cal_cli.runtime.runs import TINY
from cal_cli.toy.materials import CELL, IMAGE_SIZE
from cal_cli.toy.world import make_scenes

BASE = TINY  # made by `cal train experiment=tiny_base`
PATCH = CELL  # pixels


def make_processor() -> LlavaProcessor:
    """Train the tokenizer on the world's training split and combine it with a CLIP image processor.

    The chat template is LLaVA's v1 (`USER: ... ASSISTANT: ...</s>`); it marks the assistant's text and end
    token, which are supervised. It ignores `add_generation_prompt`: every user turn ends with the prompt.
    """
    bpe = Tokenizer(models.BPE())
    # offsets include the space before a word, else the mask of the assistant's text would begin one token late
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), words])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        min_frequency=2,
        special_tokens=["<pad>", "<s>", "</s>", "<image>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    world = make_scenes(n=6000, seed=0, split="train", text_only_share=1.0)
    turns = [turn["value"] for entry in world.entries for turn in entry["conversations"]]
    bpe.train_from_iterator([f"USER: \n{turn} ASSISTANT: {turn}" for turn in turns], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="right",
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
    image_processor = CLIPImageProcessorPil(
        size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    )
    return LlavaProcessor(
        image_processor=image_processor,
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=(BASE / "chat_template.jinja").read_text(),
    )


def make_config(processor: LlavaProcessor) -> LlavaConfig:
    """Make the architecture; vocabulary and special tokens are those of the processor."""
    tokenizer = processor.tokenizer
    return LlavaConfig(  # type: ignore[call-arg]
        vision_config=CLIPVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=PATCH,
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=1024,
            initializer_range=128**-0.5,  # the library's 0.02 suits a width of 2,500; at 128 training would stall
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        initializer_range=96**-0.5,
        image_seq_length=(IMAGE_SIZE // PATCH) ** 2,
        vision_feature_layer=-1,  # the paper's -2 would leave the third of three layers unused
    )


def make_random_model(seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Make the tiny model with random weights drawn from `seed`, in float32, and its processor."""
    processor = make_processor()
    torch.manual_seed(seed)
    return LlavaForConditionalGeneration(make_config(processor)), processor


def load_tiny() -> tuple[Any, Any]:
    """Load the shipped base in float32, with its processor."""
    return TinyModel().load()


@dataclass
class TinyModel(ModelSource):
    """The default model: the shipped base, another checkpoint of it, or random weights.

    Args:
        path: a folder written by `save_pretrained`; None means the shipped base.
        from_scratch: random weights, with the config and the processor of the base.
        new_projector: random weights for the projector alone, as before the paper's stage 1.

    Raises InputError if the folder contains no model, or two options exclude each other.
    """

    from_scratch: bool = False
    new_projector: bool | None = None

    def __post_init__(self) -> None:
        if self.from_scratch and self.path is not None:
            raise InputError("model.path and model.from_scratch=true exclude each other: give one of them")
        if self.new_projector and (self.from_scratch or self.projector is not None):
            raise InputError("model.new_projector=true excludes model.projector and from_scratch: give one of them")
        self.path = self.path or str(BASE)
        if not (Path(self.path) / "config.json").is_file():
            raise InputError(f"model.path={self.path}: no config.json there; give a folder written by save_pretrained")
        super().__post_init__()

    def load(self, seed: int = 0) -> tuple[Any, Any]:
        """Load the model and its processor; `seed` is that of random weights."""
        if self.from_scratch:
            return make_random_model(seed)
        model, processor = super().load(seed)
        if self.new_projector:
            torch.manual_seed(seed)
            projector = LlavaForConditionalGeneration(model.config).model.multi_modal_projector
            model.model.multi_modal_projector = projector.to(model.dtype)
        return model, processor
