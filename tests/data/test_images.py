"""Images are read alike, whatever their file format, and what cannot be read is refused in a sentence."""

import base64
import io
import json

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps

from cal_cli.data.images import MAX_ASPECT_RATIO, open_image
from cal_cli.data.llava_json import load_llava_json, write_llava_json
from cal_cli.data.tables import load_conversations
from cal_cli.runtime.errors import InputError

SQUARE = np.zeros((12, 12))
SQUARE[2:8, 3:9] = 0.6  # its grey value as a share of the range


def encode(image, kind, **options):
    with io.BytesIO() as file:
        image.save(file, kind, **options)
        return file.getvalue()


def read(content, **options):
    return np.asarray(open_image(io.BytesIO(content), **options))


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ((SQUARE * 65535).astype(np.uint16), "PNG"),
        ((SQUARE * 65535).astype(np.uint16), "TIFF"),
        ((SQUARE * 65535).astype(np.int32), "TIFF"),
        (SQUARE.astype(np.float32), "TIFF"),
        ((SQUARE * 255).astype(np.float32), "TIFF"),
        ((SQUARE * 255).astype(np.uint8), "PNG"),
    ],
)
def test_grey_values_of_any_depth_are_scaled_to_eight_bits(values, kind):
    seen = read(encode(Image.fromarray(values), kind))
    assert seen.dtype == np.uint8 and seen.shape == (12, 12, 3)
    np.testing.assert_allclose(seen, np.repeat(SQUARE[..., None] * 255, 3, axis=2), atol=1)


def test_values_of_no_known_range_go_from_the_lowest_to_the_highest():
    values = np.where(SQUARE > 0, 5000, -300).astype(np.float32)
    values[0, 0] = np.nan  # as a missing measurement
    seen = read(encode(Image.fromarray(values), "TIFF"))[..., 0]
    assert set(seen[1:].ravel().tolist()) == {0, 255} and (seen[2:8, 3:9] == 255).all()
    assert (read(encode(Image.fromarray(np.full((4, 4), -7.0, np.float32)), "TIFF")) == 0).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_in_exif_data_is_applied(orientation):
    noise = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    turn = {2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE"}
    turn |= {6: "ROTATE_270", 7: "TRANSVERSE", 8: "ROTATE_90"}
    expected = Image.fromarray(noise)
    if orientation > 1:
        expected = expected.transpose(Image.Transpose[turn[orientation]])
    np.testing.assert_array_equal(read(encode(Image.fromarray(noise), "PNG", exif=exif)), np.asarray(expected))


@given(st.binary(max_size=60))
def test_broken_exif_data_leave_the_image_as_it_is(exif):
    content = encode(Image.new("RGB", (5, 4), "red"), "JPEG", exif=b"Exif\0\0" + exif)
    assert sorted(read(content).shape) == [3, 4, 5]


def test_transparent_pixels_are_on_the_background():
    image = Image.new("RGBA", (2, 1))  # both pixels are transparent, and black below
    image.putpixel((1, 0), (200, 0, 0, 128))
    content = encode(image, "PNG")
    assert read(content)[0, 0].tolist() == [255, 255, 255]
    half = 128 / 255
    np.testing.assert_allclose(read(content)[0, 1], np.array([200, 0, 0]) * half + 255 * (1 - half), atol=1)
    assert read(content, background="#00ff00")[0, 0].tolist() == [0, 255, 0]
    np.testing.assert_array_equal(read(content, background=None), np.asarray(image.convert("RGB")))
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    assert read(encode(palette, "GIF", transparency=0)).tolist() == [[[255] * 3, [10, 20, 30]]]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_of_an_animation_the_first_frame_is_read(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    seen = read(encode(frames[0], kind, save_all=True, append_images=frames[1:]))
    np.testing.assert_allclose(seen, np.full((8, 8, 3), [255, 0, 0]), atol=2)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16"])
def test_every_mode_arrives_as_rgb(mode):
    seen = open_image(io.BytesIO(encode(Image.new(mode, (4, 3)), "TIFF")))
    assert seen.mode == "RGB" and seen.size == (4, 3)


@pytest.mark.parametrize("kind", ["AVIF", "PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO"])
@given(cut=st.integers(1, 300), flip=st.integers(0, 299))
def test_a_broken_file_is_an_image_or_a_sentence(kind, cut, flip):
    content = bytearray(BROKEN[kind][:-cut])
    if content:
        content[flip % len(content)] ^= 0xFF
    try:
        assert open_image(io.BytesIO(content)).mode == "RGB"
    except InputError as error:
        assert "its image" in str(error)


BROKEN = {
    kind: encode(ImageOps.expand(Image.new("RGB", (24, 24), "red"), 4, "blue"), kind)
    for kind in ("AVIF", "PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "ICO")
}


def test_a_thin_or_large_image_is_refused():
    with pytest.raises(InputError, match="has 1 x 20000 pixels; one side may be at most 200 times as long"):
        read(encode(Image.new("L", (1, 20000)), "PNG"))
    assert read(encode(Image.new("L", (1, MAX_ASPECT_RATIO)), "PNG")).shape == (MAX_ASPECT_RATIO, 1, 3)
    with pytest.raises(InputError, match="has 10 x 11 pixels, more than 109"):
        read(encode(Image.new("L", (10, 11)), "PNG"), max_pixels=109)


def test_json_and_a_table_show_the_same_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.new("LA", (6, 4), (90, 0))
    image.putpixel((0, 0), (90, 255))
    image.save(tmp_path / "a.png", exif=exif)
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a pixel"}]
    write_llava_json([{"id": "a", "image": "a.png", "conversations": turns}], tmp_path / "data.json")
    (tmp_path / "rows.jsonl").write_text((tmp_path / "data.json").read_text().replace("\n", "")[1:-1])
    for options, behind in (({}, 255), ({"background": None}, 90), ({"background": "black"}, 0)):
        data = [load_llava_json(str(tmp_path / "data.json"), **options)]
        data.append(load_conversations(str(tmp_path / "rows.jsonl"), **options))
        for samples in data:
            seen = np.asarray(samples[0]["image"])
            assert seen.shape == (6, 4, 3) and seen[0, 3].tolist() == [90] * 3 and seen[1, 1].tolist() == [behind] * 3


def test_a_background_that_is_no_colour_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"data\.background=whit: must be a colour"):
        load_llava_json(str(tmp_path / "data.json"), background="whit")


def swap_primaries():
    """The profile of sRGB with red's and blue's primaries swapped, by the offsets in its table of tags."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132], "big")
    places = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, blue = (slice(places[name], places[name] + 8) for name in (b"rXYZ", b"bXYZ"))
    profile[red], profile[blue] = profile[blue], profile[red]
    return bytes(profile)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_a_profile_changes_colours_only_on_demand(mode):
    image = Image.new("RGB", (6, 6), (200, 30, 60)).convert(mode)
    content = encode(image, "PNG", icc_profile=swap_primaries())
    assert np.array_equal(read(content), np.asarray(image.convert("RGB")))
    swapped = np.asarray(image.convert("RGB"))[..., ::-1].astype(int)
    assert np.abs(read(content, icc=True) - swapped).max() <= 1
    assert np.array_equal(read(encode(image, "PNG", icc_profile=b"broken"), icc=True), np.asarray(image.convert("RGB")))


def test_transparency_and_orientation_outlive_a_profile():
    image = Image.new("RGBA", (6, 4), (200, 30, 60, 0))
    exif = Image.Exif()
    exif[274] = 6
    content = encode(image, "PNG", icc_profile=swap_primaries(), exif=exif)
    assert np.array_equal(read(content, icc=True), np.full((6, 4, 3), 255))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
@pytest.mark.parametrize("form", ["bare", "url"])
def test_base64_in_place_of_a_name_is_read(kind, form, tmp_path):
    content = encode(Image.new("RGB", (8, 8), (250, 10, 20)), kind)
    text = base64.b64encode(content).decode()
    text = f"data:image/{kind.lower()};base64,{text}" if form == "url" else text
    turns = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "a disc"}]
    (tmp_path / "a.json").write_text(json.dumps([{"id": "0", "image": text, "conversations": turns}] * 2))
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
    for data in (load_llava_json(str(tmp_path / "a.json")), load_conversations(str(tmp_path / "a.json"))):
        assert np.array_equal(np.asarray(data[1]["image"]), expected)
        assert data.fingerprint_images() == data.replace(entries=[]).fingerprint_images()
    datasets.Dataset.from_list([{"image": text, "caption": "a disc"}] * 2).to_parquet(tmp_path / "a.parquet")
    assert np.array_equal(np.asarray(load_conversations(str(tmp_path / "a.parquet"))[0]["image"]), expected)
