"""The shape of an MGM, to be measured with random weights."""

from dataclasses import dataclass, replace
from typing import Any

from transformers import CLIPVisionConfig, ConvNextConfig, LlamaConfig

from cal_cli.bench.shapes import IMAGE, PATCH, PICTURE, Shape
from cal_cli.models.mgm import MGMConfig

AUX_PICTURE = 768  # pixels of a side of what the high-resolution tower reads for each crop


@dataclass
class MGMShape(Shape):
    """The sizes of an MGM; `conf/shape/mgm7b.yaml` documents them."""

    crops: int
    aux_hidden_sizes: list[int]
    aux_depths: list[int]

    def scale(self, depth: int | None = None, width: int | None = None) -> "MGMShape":
        found: Any = super().scale(depth, width)
        narrower = self.vision_hidden_size // found.vision_hidden_size
        fewer = self.layers // found.layers
        return replace(
            found,
            aux_hidden_sizes=[size // narrower for size in self.aux_hidden_sizes],
            aux_depths=[max(layers // fewer, 1) for layers in self.aux_depths],
        )

    def make_config(self, vision: CLIPVisionConfig, text: LlamaConfig) -> MGMConfig:
        aux: Any = ConvNextConfig(hidden_sizes=list(self.aux_hidden_sizes), depths=list(self.aux_depths))
        options: dict[str, Any] = {"vision_config": vision, "text_config": text, "image_token_index": IMAGE}
        return MGMConfig(**options, aux_vision_config=aux, aux_image_size=self.pixel_shape[-1], crops=self.crops)

    @property
    def pixel_shape(self) -> tuple[int, ...]:
        side = AUX_PICTURE * self.crops
        return 3, side, side

    @property
    def image_tokens(self) -> int:
        return (PICTURE // PATCH) ** 2 * (1 if self.crops == 1 else 1 + self.crops**2)
