"""Open images: the one function that reads image files, for training, benchmarks and checks."""

import base64
import binascii
import io
import os
import struct
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps, UnidentifiedImageError

from cal_cli.runtime.errors import InputError, shorten

MAX_PIXELS = 89_478_485  # beyond this Pillow warns of a decompression bomb
ENCODED = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "Qk")  # how JPEG, PNG, GIF, WebP and BMP begin in base64
SHORTEST = 50  # characters of an image in base64
MAX_ASPECT_RATIO = 200  # that of Qwen2-VL's image processor; thinner images become gigabytes of patches


def open_image(
    file: Path | IO[bytes], max_pixels: int = MAX_PIXELS, background: str | None = "white", icc: bool | None = None
) -> Image.Image:
    """Read an image file as 8-bit RGB.

    The orientation in its EXIF data is applied. Of an animation, the first frame is read. Grey values of more than 8
    bits are scaled to 8 (see `scale_to_bytes`).

    Args:
        file: the file, or its contents.
        max_pixels: largest allowed number of pixels.
        background: the colour behind transparent pixels, by a name or code of `PIL.ImageColor`; None ignores
            transparency and shows the colours that the file has there, often black, as LLaVA's code does.
        icc: convert colours by the file's ICC profile to sRGB; by default they stay as stored, as in LLaVA's code.

    Raises InputError if it cannot be read as an image, has too many pixels or is too thin.
    """
    named = f"{shorten(str(file))}: " if isinstance(file, Path) else "its image "
    try:
        with Image.open(file) as image:
            width, height = image.size
            if width * height <= max_pixels and max(width, height) <= MAX_ASPECT_RATIO * min(width, height):
                image.load()
                return make_rgb(orient(convert_colours(image) if icc else image), background)
    except Exception as error:  # each format's decoder fails with errors of its own
        problem = error.strerror if isinstance(error, OSError) and error.strerror else error or type(error).__name__
        problem = "unknown format" if isinstance(error, UnidentifiedImageError) else problem
        raise InputError(f"{named}cannot be read as an image ({problem})") from error
    if width * height > max_pixels:
        raise InputError(f"{named}has {width} x {height} pixels, more than {max_pixels}")
    raise InputError(
        f"{named}has {width} x {height} pixels; one side may be at most {MAX_ASPECT_RATIO} times as long as the other"
    )


def open_content(
    content: bytes | str | Path,
    folder: Path,
    max_pixels: int = MAX_PIXELS,
    background: str | None = "white",
    icc: bool | None = None,
) -> Image.Image:
    """Open an image from its bytes, its path, or its name in a folder, which it must not leave; see `open_image`.

    Raises InputError as `open_image`, or if the name has a problem, see `find_file_problem`.
    """
    if isinstance(content, str) and (inline := decode_inline(content)) is not None:
        content = inline
    elif isinstance(content, str):
        if problem := find_file_problem(content, folder):
            raise InputError(problem)
        content = folder / content
    return open_image(io.BytesIO(content) if isinstance(content, bytes) else content, max_pixels, background, icc)


def decode_inline(name: str) -> bytes | None:
    """Return the contents of an image that stands in place of its name: a data URL, or bare base64; None for a name.

    Raises InputError for a data URL that is not base64.
    """
    if not name.startswith("data:") and (not name.startswith(ENCODED) or len(name) < SHORTEST):
        return None
    try:
        return base64.b64decode(name.partition(",")[2] if name.startswith("data:") else name, validate=True)
    except (binascii.Error, ValueError) as error:
        if name.startswith("data:"):
            raise InputError(f"its image is a data URL that is not base64 ({error})") from error
        return None


def find_file_problem(name: str, folder: Path) -> str | None:
    """Describe why an image cannot be in a folder by its name, or that it is not there; None if it is."""
    shown = shorten(name)
    try:
        if (inline := decode_inline(name)) is not None:
            Image.open(io.BytesIO(inline))
            return None
    except InputError as error:
        return str(error)
    except Exception:  # each format's decoder fails with errors of its own
        return f"its image {shown} cannot be read as an image"
    if "://" in name:
        return f"its image is at {shown}: only files are read; download it first"
    # links below the folder are followed: LLaVA's data are usually laid out with them
    if ".." in Path(name).parts or not Path(os.path.abspath(folder / name)).is_relative_to(os.path.abspath(folder)):
        return f"its image {shown} leaves the folder {folder}"
    try:
        return None if (folder / name).is_file() else f"its image {shown} is not in {folder}"
    except (OSError, ValueError):  # a name that no file can have
        return f"its image {shown} is not in {folder}"


def orient(image: Image.Image) -> Image.Image:
    """Rotate and mirror an image as its EXIF data says; leave it as it is if these are broken."""
    try:
        return ImageOps.exif_transpose(image)
    except (OSError, SyntaxError, TypeError, ValueError, struct.error):
        return image


def convert_colours(image: Image.Image) -> Image.Image:
    """Convert an image from the colours of its ICC profile to sRGB; leave it as it is without a valid profile."""
    profile = image.info.get("icc_profile")
    if not profile or image.mode.startswith("I") or image.mode == "F":
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    plain = image if image.mode in ("L", "RGB", "CMYK") else image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        converted = ImageCms.profileToProfile(plain, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except (OSError, ImageCms.PyCMSError):
        return image
    assert converted is not None  # as the conversion is not in place
    converted.info |= {key: value for key, value in image.info.items() if key == "exif"}
    if alpha is not None:
        converted.putalpha(alpha)
    return converted


def make_rgb(image: Image.Image, background: str | None) -> Image.Image:
    """Convert an image of any mode to RGB; see `open_image`."""
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(scale_to_bytes(np.asarray(image))).convert("RGB")
    if background is None or not image.has_transparency_data:
        return image.convert("RGB")
    behind = Image.new("RGBA", image.size, background)
    return Image.alpha_composite(behind, image.convert("RGBA")).convert("RGB")


def scale_to_bytes(values: np.ndarray) -> np.ndarray:
    """Scale grey values, of any dtype, to uint8 of the same shape.

    Their range is that of 16 bits for integers from 0 to 65,535, 0 to 1 or 0 to 255 for floats that fit into it, and
    else from the lowest to the highest finite value.
    """
    numbers = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(numbers.min()), float(numbers.max())
    ranges = (65535,) if values.dtype.kind in "iu" else (1, 255)
    top = next((top for top in ranges if low >= 0 and high <= top), None)
    if top is not None:
        low, high = 0.0, float(top)
    return np.round((numbers - low) / max(high - low, 1e-300) * 255).astype(np.uint8)


def check_background(background: str | None, key: str) -> None:
    """Check the colour behind transparent pixels. Raises InputError, which names the config key, if it is none."""
    try:
        ImageColor.getrgb(background or "white")
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{key}={background}: must be a colour, such as white or '#808080', or null for the file's own"
        ) from error
