"""Models and batches of a published shape with random weights: only sizes matter to a clock."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
)

PATCH, PICTURE = 14, 336  # of CLIP ViT-L/14-336
FIRST_WORD = 1000  # the random texts hold no special token


@dataclass
class Shape:
    """What a step's time depends on.

    Args:
        tiles: pictures a sample that the vision tower sees: 1 as in LLaVA-1.5, or 5 (AnyRes, 2 x 2 tiles and the
            whole) as in LLaVA-NeXT, which makes 2,928 image tokens of a square picture.
        hidden_size, intermediate_size, layers, heads, vocabulary: of the decoder.
        vision_hidden_size, vision_layers: of the vision tower.
        text_tokens: words a sample, prompt and answer.
        supervised_tokens: of these, the answer at the end.
        batch_size: samples a step.
    """

    tiles: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    vocabulary: int
    vision_hidden_size: int
    vision_layers: int
    text_tokens: int
    supervised_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.tiles not in (1, 5):
            raise ValueError(f"shape.tiles={self.tiles}: allowed are 1 (LLaVA-1.5) and 5 (LLaVA-NeXT, 2 x 2 tiles)")
        if not 0 < self.supervised_tokens < self.text_tokens:
            raise ValueError(
                f"shape.supervised_tokens={self.supervised_tokens}: must be above 0 and below shape.text_tokens="
                f"{self.text_tokens}"
            )

    def scaled(self, depth: int, width: int) -> "Shape":
        """The shape with `depth` times fewer layers and `width` times narrower; the tokens stay as they are."""
        narrower = ("hidden_size", "intermediate_size", "heads", "vision_hidden_size")
        changed = {name: getattr(self, name) // width for name in narrower}
        changed |= {name: max(getattr(self, name) // depth, 1) for name in ("layers", "vision_layers")}
        return replace(self, **changed)

    def model(self, dtype: torch.dtype, checkpointing: bool) -> Any:
        """A LLaVA or LLaVA-NeXT of this shape in training mode, its vision tower frozen."""
        vision = CLIPVisionConfig(
            image_size=PICTURE,
            patch_size=PATCH,
            hidden_size=self.vision_hidden_size,
            intermediate_size=4 * self.vision_hidden_size,
            num_hidden_layers=self.vision_layers,
            num_attention_heads=max(self.vision_hidden_size // 64, 1),
        )
        text = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=4096,
        )
        config: Any
        if self.tiles == 1:
            config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=3)
        else:
            sizes = [[PICTURE, 2 * PICTURE], [2 * PICTURE, PICTURE], [2 * PICTURE, 2 * PICTURE]]
            config = LlavaNextConfig(
                vision_config=vision, text_config=text, image_token_index=3, image_grid_pinpoints=sizes
            )
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
        model.model.vision_tower.requires_grad_(False)
        if checkpointing:
            model.gradient_checkpointing_enable()
        return model.train()

    @property
    def image_tokens(self) -> int:
        """Image tokens a sample."""
        side = PICTURE // PATCH
        return side**2 if self.tiles == 1 else side**2 + 2 * side * (2 * side + 1)  # each row of tiles ends a line

    def batch(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Random samples: a few words, the picture, the rest of the prompt, the answer."""
        generator = torch.Generator().manual_seed(0)
        texts = (self.batch_size, self.text_tokens)
        words = torch.randint(min(FIRST_WORD, self.vocabulary // 2), self.vocabulary, texts, generator=generator)
        image = torch.full((self.batch_size, self.image_tokens), 3)
        before = min(10, self.text_tokens - self.supervised_tokens)
        input_ids = torch.cat([words[:, :before], image, words[:, before:]], dim=1)
        labels = input_ids.clone()
        labels[:, : -self.supervised_tokens] = -100
        pictures = (self.batch_size,) if self.tiles == 1 else (self.batch_size, self.tiles)
        pixels = torch.randn(*pictures, 3, PICTURE, PICTURE, generator=generator).to(dtype)
        batch = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": labels,
            "pixel_values": pixels,
        }
        if self.tiles > 1:
            batch["image_sizes"] = torch.tensor([[2 * PICTURE, 2 * PICTURE]] * self.batch_size)
        return {name: value.to(device) for name, value in batch.items()}
