"""The vision tower sees each picture once, however many questions are asked about it."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class PicturesSeenOnce:
    """Within it, a model's image features are computed once for each picture and given to all questions about it.

    It stands in front of the library's own `get_image_features`, whose results are a tensor or a list with an entry
    for each image. Where that is not so, or pictures cannot be told apart in the model's inputs (tiles of an unknown
    number, as InternVL has them), each is seen as often as it is shown.

    Attributes:
        shown: the name of each image of the batch to come, in its order.
    """

    def __init__(self, model: Any) -> None:
        self.owner = model.base_model
        self.shown: list[str] = []
        self.features: dict[str, Tensor] = {}
        self.result: Any = None  # the last, for what it has beside the features
        self.possible = True

    def __enter__(self) -> "PicturesSeenOnce":
        self.original = getattr(self.owner, "get_image_features", None)
        if self.original is not None:
            # by which name: the library's `generate` looks at it too
            self.__signature__ = inspect.signature(self.original)
            self.owner.get_image_features = self
        return self

    def __exit__(self, *exception: object) -> None:
        if self.original is not None:
            del self.owner.get_image_features
        self.forget()

    def forget(self) -> None:
        """Let go of all features."""
        self.features, self.result = {}, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.original is not None  # else nothing calls this
        given = dict(self.__signature__.bind_partial(*args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        names = self.shown
        sizes = rows_of_images(given, len(names))
        if not self.possible or sizes is None:
            return self.original(**given)
        new = [place for place, name in enumerate(names) if name not in self.features and name not in names[:place]]
        if new:
            result = self.original(**selected(given, new, len(names), sizes))
            features = entries(result, len(new))
            if features is None:
                self.possible = False
                return result if len(new) == len(names) else self.original(**given)
            self.result = result
            self.features |= {names[place]: value for place, value in zip(new, features, strict=True)}
        return with_entries(self.result, [self.features[name] for name in names])


def rows_of_images(given: Mapping[str, Any], images: int) -> list[int] | None:
    """How many rows of the pixels each image has; None if that cannot be told."""
    pixels = given.get("pixel_values")
    if not isinstance(pixels, Tensor) or not images:
        return None
    grids = given.get("image_grid_thw")
    if isinstance(grids, Tensor) and len(grids) == images:  # Qwen: one row a patch
        return grids.prod(dim=-1).tolist()
    return [1] * images if len(pixels) == images else None


def selected(given: Mapping[str, Any], places: list[int], images: int, sizes: list[int]) -> dict[str, Any]:
    """The arguments for some of the images."""
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name == "pixel_values" and sum(sizes) != images:
            value = torch.cat([value.split(sizes)[place] for place in places])
        elif isinstance(value, Tensor) and value.ndim and len(value) == images:
            value = value[places]
        chosen[name] = value
    return chosen


def entries(found: Any, images: int) -> list[Tensor] | None:
    """The features by image in a result of `get_image_features`; None if it has another form.

    That of Qwen3-VL has features of several layers beside them, which are not split by image.
    """
    if getattr(found, "deepstack_features", None) is not None:
        return None
    features = getattr(found, "pooler_output", found)
    if isinstance(features, Tensor | list | tuple) and len(features) == images:
        return list(features)
    return None


def with_entries(found: Any, features: list[Tensor]) -> Any:
    """A result of the same form with other features."""
    before = getattr(found, "pooler_output", found)
    value: Any = torch.stack(features) if isinstance(before, Tensor) else type(before)(features)
    if before is found:
        return value
    other = copy.copy(found)
    other.pooler_output = value
    return other
