"""Models and batches to measure: a published shape with random weights, which take the same time, or a checkpoint."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    ConvNextConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
)

from cal_cli.models.load import checkpoint_activations
from cal_cli.models.mgm.model import MGMConfig
from cal_cli.models.parts import freeze_parts
from cal_cli.objective.passes import find_image_columns
from cal_cli.toy.model import TinyModel

PATCH, IMAGE_SIZE = 14, 336  # of CLIP ViT-L/14-336
IMAGE = 3  # the image token
FIRST_WORD = 1000  # the random texts hold no special token
CPU_DEPTH, CPU_WIDTH = 4, 8  # by default LLaVA-7B becomes 8 layers of width 512 on a CPU


@dataclass
class Shape:
    """The sizes that determine the time of a step; `conf/shape/` documents them."""

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
        check_tokens(self)

    def scale(self, depth: int | None = None, width: int | None = None) -> "Shape":
        """Return the shape with `depth` times fewer layers, `width` times narrower, and the same tokens.

        None means 1 on a GPU, and `CPU_DEPTH` and `CPU_WIDTH` elsewhere.
        """
        cuda = torch.cuda.is_available()
        depth, width = depth or (1 if cuda else CPU_DEPTH), width or (1 if cuda else CPU_WIDTH)
        if self.heads % width or self.vision_hidden_size // width < 64:
            raise ValueError(f"width={width}: must divide the {self.heads} heads and leave the vision tower 64 wide")
        narrower = ("hidden_size", "intermediate_size", "heads", "vision_hidden_size")
        changed = {name: getattr(self, name) // width for name in narrower}
        changed |= {name: max(getattr(self, name) // depth, 1) for name in ("layers", "vision_layers")}
        return replace(self, **changed)

    def make_model(self, dtype: torch.dtype, checkpointing: bool, device: str = "cpu") -> Any:
        """Make a model of this shape on a device, in training mode, with frozen vision towers."""
        vision = CLIPVisionConfig(
            image_size=IMAGE_SIZE,
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
        torch.manual_seed(0)
        with torch.device(device):
            model = AutoModelForImageTextToText.from_config(self.make_config(vision, text), dtype=dtype)
        freeze_parts(model, {"vision_tower": 0.0})
        if checkpointing:
            checkpoint_activations(model)
        return model.train()

    def make_config(self, vision: CLIPVisionConfig, text: LlamaConfig) -> Any:
        """Make the config of a LLaVA, or of a LLaVA-NeXT if there are several tiles."""
        options: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": IMAGE}
        if self.tiles == 1:
            return LlavaConfig(**options)
        sizes = [[IMAGE_SIZE, 2 * IMAGE_SIZE], [2 * IMAGE_SIZE, IMAGE_SIZE], [2 * IMAGE_SIZE, 2 * IMAGE_SIZE]]
        return LlavaNextConfig(**options, image_grid_pinpoints=sizes)

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        """Shape of the pixels of a sample."""
        image = (3, IMAGE_SIZE, IMAGE_SIZE)
        return image if self.tiles == 1 else (self.tiles, *image)

    @property
    def image_tokens(self) -> int:
        """Image tokens of a sample."""
        side = IMAGE_SIZE // PATCH
        more = 0 if self.tiles == 1 else 2 * side * (2 * side + 1)  # one newline token for each row of features
        return side**2 + more

    def make_batch(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Make random samples: a few words, the image, the rest of the prompt, the answer."""
        generator = torch.Generator().manual_seed(0)
        texts = (self.batch_size, self.text_tokens)
        words = torch.randint(min(FIRST_WORD, self.vocabulary // 2), self.vocabulary, texts, generator=generator)
        image = torch.full((self.batch_size, self.image_tokens), IMAGE)
        before = min(10, self.text_tokens - self.supervised_tokens)
        input_ids = torch.cat([words[:, :before], image, words[:, before:]], dim=1)
        labels = input_ids.clone()
        labels[:, : -self.supervised_tokens] = -100
        pixels = torch.randn(self.batch_size, *self.pixel_shape, generator=generator).to(dtype)
        batch = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": labels,
            "pixel_values": pixels,
        }
        if self.tiles > 1:
            batch["image_sizes"] = torch.tensor([[2 * IMAGE_SIZE, 2 * IMAGE_SIZE]] * self.batch_size)
        return {name: value.to(device) for name, value in batch.items()}


@dataclass
class Checkpoint:
    """A model with its own weights and processor, and random samples for it; see `conf/shape/checkpoint.yaml`."""

    path: str | None
    picture: int
    text_tokens: int
    supervised_tokens: int
    batch_size: int

    def __post_init__(self) -> None:
        check_tokens(self)
        self.loaded, self.processor = TinyModel(self.path).load()

    def scale(self, depth: int | None = None, width: int | None = None) -> "Checkpoint":
        """Return the checkpoint itself. Raises ValueError if a depth or width is given."""
        if depth or width:
            raise ValueError("depth and width are for shapes with random weights: a checkpoint has its own")
        return self

    def make_model(self, dtype: torch.dtype, checkpointing: bool, device: str = "cpu") -> Any:
        """Return the loaded model on a device, in training mode; every part is trained."""
        if checkpointing:
            checkpoint_activations(self.loaded)
        return self.loaded.to(device, dtype).train()  # type: ignore[arg-type]

    @property
    def image_tokens(self) -> int:
        """Image tokens of a sample."""
        return int(find_image_columns(self.loaded, self._make_prompt()["input_ids"])[0].sum())

    def _make_prompt(self) -> Any:
        noise = torch.randint(256, (self.picture, self.picture, 3), generator=torch.Generator().manual_seed(0))
        content = [{"type": "image", "image": Image.fromarray(noise.byte().numpy())}, {"type": "text", "text": ""}]
        return self.processor.apply_chat_template(
            [[{"role": "user", "content": content}]] * self.batch_size,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def make_batch(self, device: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """Make samples with a random image, the template's prompt, and random words."""
        batch = dict(self._make_prompt())
        shape = batch["input_ids"].shape
        size = self.loaded.config.get_text_config().vocab_size
        special = torch.tensor([i for i in self.processor.tokenizer.all_special_ids if i < size])
        words = torch.ones(size)
        words[special] = 0
        words = words.multinomial(
            self.batch_size * self.text_tokens, replacement=True, generator=torch.Generator().manual_seed(0)
        ).view(self.batch_size, -1)
        for name, value in batch.items():
            if torch.is_tensor(value) and value.shape == shape:
                more = {"input_ids": words, "attention_mask": torch.ones_like(words)}
                batch[name] = torch.cat([value, more.get(name, torch.zeros_like(words))], dim=1)
            elif torch.is_floating_point(value):
                batch[name] = value.to(dtype)
        batch["labels"] = batch["input_ids"].clone()
        batch["labels"][:, : -self.supervised_tokens] = -100
        return {name: value.to(device) for name, value in batch.items()}


def check_tokens(shape: Any) -> None:
    """Raise ValueError unless some tokens are supervised and some are not."""
    if not 0 < shape.supervised_tokens < shape.text_tokens:
        raise ValueError(
            f"shape.supervised_tokens={shape.supervised_tokens}: must be above 0 and below shape.text_tokens="
            f"{shape.text_tokens}"
        )
    if shape.batch_size < 1:
        raise ValueError(f"shape.batch_size={shape.batch_size}: must be at least 1")


AUX_IMAGE_SIZE = 768  # pixels of a side of what the high-resolution tower reads for each crop


@dataclass
class MGMShape(Shape):
    """The sizes of an MGM; `conf/shape/mgm7b.yaml` documents them."""

    crops: int
    aux_hidden_sizes: list[int]
    aux_depths: list[int]

    def scale(self, depth: int | None = None, width: int | None = None) -> "MGMShape":
        scaled: Any = super().scale(depth, width)
        narrower = self.vision_hidden_size // scaled.vision_hidden_size
        fewer = self.layers // scaled.layers
        return replace(
            scaled,
            aux_hidden_sizes=[size // narrower for size in self.aux_hidden_sizes],
            aux_depths=[max(layers // fewer, 1) for layers in self.aux_depths],
        )

    def make_config(self, vision: CLIPVisionConfig, text: LlamaConfig) -> MGMConfig:
        aux: Any = ConvNextConfig(hidden_sizes=list(self.aux_hidden_sizes), depths=list(self.aux_depths))
        options: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": IMAGE}
        return MGMConfig(**options, aux_vision_config=aux, aux_image_size=self.pixel_shape[-1], crops=self.crops)

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        side = AUX_IMAGE_SIZE * self.crops
        return 3, side, side

    @property
    def image_tokens(self) -> int:
        return (IMAGE_SIZE // PATCH) ** 2 * (1 if self.crops == 1 else 1 + self.crops**2)
