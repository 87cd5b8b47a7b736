"""Compute the features of each image once, however many questions are asked about it."""

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class ImageFeatureCache:
    """A context in which a model's image features are computed once for each image and reused.

    It replaces the model's `get_image_features`, whose result must be a tensor or a list with an entry for each image.
    If it is not, or if images cannot be separated in the model's inputs (an unknown number of tiles, as for InternVL),
    features are computed for every occurrence.
    `shown` has the name of each image of the next batch, in order.
    """

    def __init__(self, model: Any) -> None:
        self.owner = model.base_model
        self.shown: list[str] = []
        self.features: dict[str, Tensor] = {}
        self.result: Any = None  # the last one, for its other fields
        self.possible = True

    def __enter__(self) -> "ImageFeatureCache":
        self.original = getattr(self.owner, "get_image_features", None)
        if self.original is not None:
            # under this name, because `generate` reads it too
            self.__signature__ = inspect.signature(self.original)
            self.owner.get_image_features = self
        return self

    def __exit__(self, *exception: object) -> None:
        if self.original is not None:
            del self.owner.get_image_features
        self.forget()

    def forget(self) -> None:
        """Drop all features."""
        self.features, self.result = {}, None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert self.original is not None  # otherwise nothing calls this
        given = dict(self.__signature__.bind_partial(*args, **kwargs).arguments)
        given |= given.pop("kwargs", {})
        names = self.shown
        sizes = count_pixel_rows(given, len(names))
        if not self.possible or sizes is None:
            return self.original(**given)
        new = [place for place, name in enumerate(names) if name not in self.features and name not in names[:place]]
        if new:
            result = self.original(**select_images(given, new, len(names), sizes))
            features = split_features(result, len(new))
            if features is None:
                self.possible = False
                return result if len(new) == len(names) else self.original(**given)
            self.result = result
            self.features |= {names[place]: value for place, value in zip(new, features, strict=True)}
        return replace_features(self.result, [self.features[name] for name in names])


def count_pixel_rows(given: Mapping[str, Any], images: int) -> list[int] | None:
    """Count the rows of the pixels that belong to each image; None if that is unknown."""
    pixels = given.get("pixel_values")
    if not isinstance(pixels, Tensor) or not images:
        return None
    grids = given.get("image_grid_thw")
    if isinstance(grids, Tensor) and len(grids) == images:  # Qwen: one row for each patch
        return grids.prod(dim=-1).tolist()
    return [1] * images if len(pixels) == images else None


def select_images(given: Mapping[str, Any], places: list[int], images: int, sizes: list[int]) -> dict[str, Any]:
    """Return the arguments for some of the images."""
    chosen: dict[str, Any] = {}
    for name, value in given.items():
        if name == "pixel_values" and sum(sizes) != images:
            value = torch.cat([value.split(sizes)[place] for place in places])
        elif isinstance(value, Tensor) and value.ndim and len(value) == images:
            value = value[places]
        chosen[name] = value
    return chosen


def split_features(found: Any, images: int) -> list[Tensor] | None:
    """Split a result of `get_image_features` by image; None if it has another form.

    The result of Qwen3-VL also has features of several layers, which cannot be split by image.
    """
    if getattr(found, "deepstack_features", None) is not None:
        return None
    features = getattr(found, "pooler_output", found)
    if isinstance(features, Tensor | list | tuple) and len(features) == images:
        return list(features)
    return None


def replace_features(found: Any, features: list[Tensor]) -> Any:
    """Return a result of the same form with other features."""
    before = getattr(found, "pooler_output", found)
    value: Any = torch.stack(features) if isinstance(before, Tensor) else type(before)(features)
    if before is found:
        return value
    other = copy.copy(found)
    other.pooler_output = value
    return other
