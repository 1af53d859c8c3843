"""Every kind of image file is decoded correctly or refused in one line."""

from __future__ import annotations

import itertools
import os
import shutil
import struct
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_kinds import ORIENTATION, bomb, encoded, png, swapped_profile, wide
from PIL import Image, ImageCms, PngImagePlugin
from safetensors.numpy import load_file

from aprilcli.errors import InputError, OptionError
from aprilcli.io.images import (
    MAX_SCANS,
    NOTE_EXIF,
    NOTE_PAGES,
    NOTE_PROFILE,
    NOTE_TRANSPARENT,
    SourceImage,
    read_image,
    to_pixels,
)

GOLDEN = Path(__file__).parents[1] / "golden"
COMPRESSIONS = ["tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "zstd", "lzma"]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GRAY = np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)
COLOR = np.stack([GRAY, GRAY.T.reshape(32, 48), 255 - GRAY], axis=-1)
FADE = np.broadcast_to(np.linspace(0, 255, 48).astype(np.uint8), (32, 48))
CLEAR = np.dstack([COLOR, FADE])
ON_WHITE = np.rint(COLOR * (FADE[..., None] / 255) + 255 - FADE[..., None].astype(float)).astype(int)


def decoded(path: Path, **options: Any) -> np.ndarray:
    image = read_image(path, **options)
    assert image.rgb.mode == "RGB"
    return np.asarray(image.rgb).astype(int)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.encode().decode().startswith(str(path.parent))
    return message


def set_tags(path: Path, values: dict[int, int], codes: dict[int, int] | None = None) -> None:
    """Overwrite tags of a little-endian TIFF's first page with one number each, and replace tags by other ``codes``."""
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        offsets = {code: tiff.pages[0].tags[code].offset for code in values}
    for code, value in values.items():
        struct.pack_into("<HHII", content, offsets[code], (codes or {}).get(code, code), 4, 1, value)
    path.write_bytes(content)


def compress(path: Path, compression: str, content: np.ndarray | None = None) -> None:
    """Replace the only strip of an uncompressed TIFF by the same bytes, or others, as Pillow compresses them."""
    if content is None:
        with tifffile.TiffFile(path) as tiff:
            start, length = tiff.pages[0].dataoffsets[0], tiff.pages[0].databytecounts[0]
        content = np.frombuffer(path.read_bytes()[start : start + length], np.uint8)[None]
    compressed = encoded("TIFF", content, compression=compression, strip_size=2**30)
    with tifffile.TiffFile(BytesIO(compressed)) as tiff:
        code, start, length = (tiff.pages[0].tags[tag].value for tag in (259, 273, 279))
    set_tags(path, {259: code, 273: path.stat().st_size, 279: length[0]})
    path.write_bytes(path.read_bytes() + compressed[start[0] : start[0] + length[0]])


def write_png(path: Path, *arguments: Any, **options: Any) -> Path:
    path.write_bytes(png(*arguments, **options))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.ppm", "a.webp", "a.pnm"])
def test_lossless_color(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, COLOR, **options)
    assert np.array_equal(decoded(path), COLOR)
    assert read_image(path).notes == ()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_jpeg(tmp_path: Path, options: dict[str, object]) -> None:
    smooth = np.stack([GRAY, GRAY[::-1], GRAY[:, ::-1]], axis=-1)
    values = decoded(saved(tmp_path / "a.JPG", smooth, quality=98, **options))
    assert abs(values - smooth).mean() < 2


def test_gray_jpeg(tmp_path: Path) -> None:
    values = decoded(saved(tmp_path / "gray.jpg", GRAY, quality=98))
    assert abs(values - GRAY[..., None]).mean() < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, name: str) -> None:
    # Pillow, like Adobe's programs, stores a CMYK JPEG inverted and marks it as such.
    ink = Image.new("CMYK", (16, 16), (255, 0, 0, 0))
    ink.save(tmp_path / name)
    assert abs(decoded(tmp_path / name) - (0, 255, 255)).max() <= 3


def test_sixteen_bit_cmyk_tiff(tmp_path: Path) -> None:
    ink = np.zeros((8, 8, 4), np.uint16)
    ink[..., 0] = 65535
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated")
    assert np.array_equal(decoded(tmp_path / "a.tif")[0, 0], (0, 255, 255))


MODES = [(mode, suffix) for mode in ("1", "P", "L", "LA", "RGBA") for suffix in ("png", "tif")]


@pytest.mark.parametrize(("mode", "suffix"), [*MODES, ("PA", "tif")])
def test_modes(tmp_path: Path, mode: str, suffix: str) -> None:
    source = Image.fromarray(COLOR).convert("P").convert("PA") if mode == "PA" else Image.fromarray(COLOR).convert(mode)
    source.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(decoded(tmp_path / f"a.{suffix}"), np.asarray(source.convert("RGB")).astype(int))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_transparent_images_are_placed_on_white_with_a_note(tmp_path: Path, name: str) -> None:
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image = read_image(saved(tmp_path / name, CLEAR, **options))
    assert abs(np.asarray(image.rgb).astype(int) - ON_WHITE).max() <= 1
    assert image.notes == (NOTE_TRANSPARENT,)


def test_opaque_alpha_gives_no_note(tmp_path: Path) -> None:
    opaque = np.dstack([COLOR, np.full_like(GRAY, 255)])
    assert read_image(saved(tmp_path / "b.png", opaque)).notes == ()


def test_gray_alpha_and_transparent_palettes(tmp_path: Path) -> None:
    expected = np.rint(GRAY * (FADE / 255) + 255 - FADE.astype(float))
    values = decoded(write_png(tmp_path / "la.png", np.dstack([GRAY, FADE])))
    assert abs(values - expected[..., None]).max() <= 1
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 200, 10, 10])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "p.png", transparency=0)
    values = decoded(tmp_path / "p.png")
    assert values[0, 0].tolist() == [255, 255, 255]
    assert values[1, 1].tolist() == [200, 10, 10]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png_of_every_kind(tmp_path: Path, channels: int, interlaced: bool, dtype: type) -> None:
    eight = {1: GRAY[..., None], 2: np.dstack([GRAY, FADE]), 3: COLOR, 4: CLEAR}[channels]
    path = write_png(tmp_path / "a.png", eight if dtype is np.uint8 else wide(eight), interlaced)
    expected = {1: GRAY[..., None], 3: COLOR, 4: ON_WHITE}.get(channels)
    if expected is None:
        expected = np.rint(GRAY * (FADE / 255) + 255 - FADE.astype(float))[..., None]
    assert abs(decoded(path) - expected).max() <= (0 if channels in (1, 3) else 1)


def test_one_transparent_color_in_sixteen_bits(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), 0x1234, np.uint16)
    values[0, 0] = 0x1235  # differs in the lower byte only
    image = read_image(write_png(tmp_path / "a.png", values, transparent=(0x1235,) * 3))
    assert np.asarray(image.rgb)[0, 0].tolist() == [255] * 3
    assert np.asarray(image.rgb)[1, 1].tolist() == [0x12] * 3
    assert image.notes == (NOTE_TRANSPARENT,)
    gray = write_png(tmp_path / "b.png", values[..., :1], transparent=(0x1235,))
    assert decoded(gray)[0, 0].tolist() == [255] * 3
    assert decoded(gray)[1, 1].tolist() == [0x12] * 3


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_gray_equals_its_eight_bit_copy(tmp_path: Path, name: str) -> None:
    Image.fromarray(wide(GRAY)).save(tmp_path / name)
    assert np.array_equal(decoded(tmp_path / name), GRAY[..., None] * np.ones(3, int))


SIXTEEN_BIT_OPTIONS = (
    {},
    {"byteorder": ">"},
    {"compression": "zlib"},
    {"compression": "zlib", "byteorder": ">"},
    {"compression": "zlib", "predictor": True},
    {"compression": "zlib", "predictor": True, "byteorder": ">"},
    {"compression": "zlib", "tile": (16, 32)},
    {"tile": (16, 16)},
    {"tile": (16, 32)},  # the last column is partial
    {"rowsperstrip": 5},
    {"bigtiff": True},
)
PLANES = ({"planarconfig": "separate"}, {"planarconfig": "separate", "compression": "zlib"})


@pytest.mark.parametrize(
    ("options", "channels"),
    [*itertools.product(SIXTEEN_BIT_OPTIONS, (1, 3, 4)), *itertools.product(PLANES, (3,))],
    ids=str,
)
def test_sixteen_bit_tiff(tmp_path: Path, options: dict[str, Any], channels: int) -> None:
    eight = {1: GRAY, 3: COLOR, 4: CLEAR}[channels]
    extra = {1: {"photometric": "minisblack"}, 3: {"photometric": "rgb"}}.get(channels)
    values = wide(eight)
    if options.get("planarconfig"):
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", values, **options, **(extra or {"photometric": "rgb", "extrasamples": [2]}))
    expected = {1: GRAY[..., None], 3: COLOR, 4: ON_WHITE}[channels]
    assert abs(decoded(tmp_path / "a.tif") - expected).max() <= (channels == 4)
    # Twelve bits in sixteen equal the eight-bit image if their range is given; alpha is unaffected.
    twelve = (values >> 4).astype(np.uint16)
    if channels == 4:
        twelve[..., 3] = values[..., 3]
    tifffile.imwrite(tmp_path / "b.tif", twelve, **options, **(extra or {"photometric": "rgb", "extrasamples": [2]}))
    assert abs(decoded(tmp_path / "b.tif", value_range=(0, 4095)) - expected).max() <= 1


def test_premultiplied_alpha_in_sixteen_bits(tmp_path: Path) -> None:
    premultiplied = wide(COLOR).astype(np.int64) * wide(FADE)[..., None] // 65535
    values = np.dstack([premultiplied, wide(FADE)]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[1])
    assert abs(decoded(tmp_path / "a.tif") - ON_WHITE).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero(tmp_path: Path, dtype: type) -> None:
    values = {np.uint8: 255 - GRAY, np.uint16: 65535 - wide(GRAY), np.float32: 1 - GRAY / 255}[dtype].astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)


def test_twelve_bits_in_sixteen_need_a_range(tmp_path: Path) -> None:
    twelve = wide(GRAY) >> 4
    Image.fromarray(twelve).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").max() <= 16  # scaled linearly, so dark, not saturated
    assert abs(decoded(tmp_path / "a.png", value_range=(0, 4095))[..., 0] - GRAY).max() <= 1
    write_png(tmp_path / "b.png", wide(COLOR) >> 4)
    assert abs(decoded(tmp_path / "b.png", value_range=(0, 4095)) - COLOR).max() <= 1
    saved(tmp_path / "c.png", COLOR)
    assert np.array_equal(decoded(tmp_path / "c.png", value_range=(0, 4095)), COLOR)  # does not apply to eight bits


def test_values_outside_the_range_are_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 1500, 2000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png", value_range=(1000, 2000))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_an_invalid_value_range_is_an_option_error(tmp_path: Path, value_range: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="value range"):
        read_image(saved(tmp_path / "a.png", COLOR), value_range=value_range)


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("magic", [2, 3, 5, 6])
def test_pnm_is_scaled_by_its_own_maximum(tmp_path: Path, magic: int, white: int) -> None:
    values = np.rint((GRAY if magic in (2, 5) else COLOR) / 255 * white).astype(int)
    content = f"P{magic}\n# a comment\n48 32\n{white}\n".encode()
    if magic in (2, 3):
        content += " ".join(map(str, values.ravel())).encode()
    else:
        content += values.astype(">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "a.pnm").write_bytes(content)
    expected = np.rint(values / white * 255).astype(int)
    assert abs(decoded(tmp_path / "a.pnm") - (expected if magic in (3, 6) else expected[..., None])).max() == 0
    if magic != 3 and white > 255:  # a range refers to the file's own values
        half = np.rint(np.clip(values / (white // 2), 0, 1) * 255).astype(int)
        ranged = decoded(tmp_path / "a.pnm", value_range=(0, white // 2))
        assert np.array_equal(ranged if magic == 6 else ranged[..., 0], half)


def test_bitmaps_in_pnm(tmp_path: Path) -> None:
    (tmp_path / "a.pbm").write_bytes(b"P1\n3 2\n1 0 1\n0 1 0\n")
    assert decoded(tmp_path / "a.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    (tmp_path / "b.pbm").write_bytes(b"P4\n3 2\n" + bytes([0b10100000, 0b01000000]))
    assert decoded(tmp_path / "b.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("values", [GRAY, COLOR], ids=["gray", "color"])
def test_float_tiff(tmp_path: Path, dtype: type, values: np.ndarray) -> None:
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    expected = values if values.ndim == 3 else values[..., None]
    tifffile.imwrite(tmp_path / "unit.tif", (values / 255).astype(dtype), photometric=photometric)
    assert abs(decoded(tmp_path / "unit.tif") - expected).max() == 0
    tifffile.imwrite(tmp_path / "wide.tif", values.astype(dtype), photometric=photometric)
    assert "values from 0 to 255; state which values are black and white with a value range" in refusal(
        tmp_path / "wide.tif"
    )
    assert np.array_equal(decoded(tmp_path / "wide.tif", value_range=(0, 255)), expected * np.ones(3, int))
    for bad in (np.nan, np.inf):
        spoilt = (values / 255).astype(dtype)
        spoilt[3, 4] = bad
        tifffile.imwrite(tmp_path / "bad.tif", spoilt, photometric=photometric)
        assert "NaN or infinite" in refusal(tmp_path / "bad.tif")
        assert "NaN or infinite" in refusal(tmp_path / "bad.tif", value_range=(0, 1))


def test_a_deflated_float_map_is_read(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "map.tiff", (GRAY / 255).astype(np.float32), compression="zlib", predictor=False)
    assert np.array_equal(decoded(tmp_path / "map.tiff")[..., 0], GRAY)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.float64])
@pytest.mark.parametrize("eight", [GRAY, COLOR], ids=["gray", "color"])
def test_compressed_tiff(tmp_path: Path, eight: np.ndarray, dtype: type, compression: str) -> None:
    values = wide(eight) if dtype is np.uint16 else (eight / 255).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb" if eight.ndim == 3 else "minisblack")
    compress(tmp_path / "a.tif", compression)
    assert np.array_equal(decoded(tmp_path / "a.tif"), eight.reshape(32, 48, -1) * np.ones(3, int))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [2, 3])
def test_predictors_of_floats(tmp_path: Path, compression: str, predictor: int) -> None:
    Image.fromarray((GRAY / 255).astype(np.float32)).save(
        tmp_path / "a.tif", compression=compression, tiffinfo={317: predictor}
    )
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)


def test_packed_bits(tmp_path: Path) -> None:
    twelve = np.rint(GRAY / 255 * 4095).astype(int)
    pairs = twelve[:, 0::2] << 12 | twelve[:, 1::2]
    packed = np.stack([pairs >> 16, pairs >> 8 & 255, pairs & 255], axis=-1).astype(np.uint8).reshape(32, 72)
    tifffile.imwrite(tmp_path / "a.tif", packed, photometric="minisblack")
    set_tags(tmp_path / "a.tif", {256: 48, 258: 12})
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)
    set_tags(tmp_path / "a.tif", {256: 72 * 8 // 10, 258: 10})
    assert "(1 x 10 bit, photometric 1, compression 1); save it as" in refusal(tmp_path / "a.tif")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
@pytest.mark.parametrize("compression", ["", "packbits"])
def test_a_predictor_that_the_compression_does_not_use_is_ignored(
    tmp_path: Path, compression: str, dtype: type
) -> None:
    values = wide(COLOR) if dtype is np.uint16 else (COLOR / 255).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    if compression:
        compress(tmp_path / "a.tif", compression)
    set_tags(tmp_path / "a.tif", {296: 2}, {296: 317})  # the unit of resolution becomes a predictor
    assert np.array_equal(decoded(tmp_path / "a.tif"), COLOR)


def test_float_pnm(tmp_path: Path) -> None:
    rows = (GRAY / 255).astype("<f4")[::-1]
    (tmp_path / "a.pfm").write_bytes(b"Pf\n48 32\n-1.0\n" + rows.tobytes())
    assert np.array_equal(decoded(tmp_path / "a.pfm")[..., 0], GRAY)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64])
def test_integers_of_other_types(tmp_path: Path, dtype: type) -> None:
    values = GRAY.astype(dtype) * 100 + 1000
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    assert np.array_equal(decoded(tmp_path / "a.tif", value_range=(1000, 26500))[..., 0], GRAY)
    if dtype is np.int16:  # by the type's range
        assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], np.rint((values + 32768.0) / 257))
    else:
        assert "with a value range" in refusal(tmp_path / "a.tif")


def test_unsigned_32_bits_stay_positive(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 2**31, 2**32 - 1]], np.uint32), photometric="minisblack")
    assert decoded(tmp_path / "a.tif", value_range=(0, 2**32 - 1))[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        *itertools.product(("f4", "i2", "i4"), ({}, {"tile": (16, 16)})),
        *itertools.product(("i2", "i4"), ({"predictor": True},)),  # the predictor of floats is another one
    ],
    ids=str,
)
def test_bytes_of_compressed_values_are_swapped_once(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    values = GRAY.astype(dtype)
    compressed = {"photometric": "minisblack", "byteorder": ">", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", values, **compressed, **options)
    assert np.array_equal(decoded(tmp_path / "a.tif", value_range=(0, 255))[..., 0], GRAY)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("color", [GRAY[..., None], COLOR], ids=["gray", "color"])
def test_only_a_channel_marked_as_alpha_is_alpha(tmp_path: Path, dtype: type, planes: str, color: np.ndarray) -> None:
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    for kind, extra in ((0, FADE), (2, FADE), (1, FADE)):
        opacity = FADE[..., None] / 255
        stored = color * (opacity if kind == 1 else 1.0)
        values = (np.dstack([np.rint(stored), extra]) * scale).astype(dtype)
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.moveaxis(values, -1, 0) if planes == "separate" else values,
            photometric="rgb" if color.shape[2] == 3 else "minisblack",
            planarconfig=planes,
            extrasamples=[kind],
        )
        image = read_image(tmp_path / "a.tif")
        expected = color if kind == 0 else np.rint(color * opacity + 255 - 255 * opacity)
        assert abs(np.asarray(image.rgb).astype(int) - expected).max() <= (3 if kind == 1 else 1)
        assert image.notes == ((NOTE_TRANSPARENT,) if kind else ())


def test_alpha_of_32_bits_spans_its_type(tmp_path: Path) -> None:
    values = np.dstack([COLOR.astype(np.uint32), np.full_like(GRAY, 2**32 - 1, dtype=np.uint32)])
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[2])
    image = read_image(tmp_path / "a.tif", value_range=(0, 255))
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero_with_alpha(tmp_path: Path, dtype: type) -> None:
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    values = (np.dstack([255.0 - GRAY, FADE]) * scale).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite", planarconfig="contig", extrasamples=[2])
    expected = np.rint(GRAY * (FADE / 255) + 255 - FADE.astype(float))
    assert abs(decoded(tmp_path / "a.tif")[..., 0] - expected).max() <= 1


def test_premultiplied_floats_with_a_value_range(tmp_path: Path) -> None:
    alpha = np.full((32, 48, 1), 0.5)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.dstack([COLOR * alpha, alpha]).astype(np.float32),
        photometric="rgb",
        extrasamples=[1],
    )
    expected = np.rint(COLOR / 2 + 127.5)
    assert abs(decoded(tmp_path / "a.tif", value_range=(0, 255)) - expected).max() <= 1


def test_compressed_planes_of_eight_bits_are_read(tmp_path: Path) -> None:
    planes = np.moveaxis(CLEAR, -1, 0)
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2], "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", planes, **options)
    assert abs(decoded(tmp_path / "a.tif") - ON_WHITE).max() <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_compressed_signed_bytes(tmp_path: Path, compression: str) -> None:
    signed = (GRAY.astype(int) - 128).astype(np.int8).view(np.uint8)
    saved(tmp_path / "a.tif", signed, compression=compression, tiffinfo={339: 2})
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)


def test_signed_bytes(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", (GRAY.astype(int) - 128).astype(np.int8), photometric="minisblack")
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)


def test_text_ppm_of_more_than_eight_bits_is_read_in_full(tmp_path: Path) -> None:
    twelve = wide(COLOR) >> 4
    numbers = b" ".join(b"%d" % value for value in twelve.flat)
    (tmp_path / "a.ppm").write_bytes(b"P3 48 32 65535\n# twelve bits\n" + numbers)
    assert abs(decoded(tmp_path / "a.ppm", value_range=(0, 4095)) - COLOR).max() <= 1
    (tmp_path / "a.ppm").write_bytes(b"P3 48 32 65535\n" + numbers[:-2000])
    assert "truncated" in refusal(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").write_bytes(b"P3 1 1 300\n#" + b"x" * 1000 + b"\n0 150 300\n")
    assert decoded(tmp_path / "a.ppm").tolist() == [[[0, 128, 255]]]
    (tmp_path / "a.ppm").write_bytes(b"P3 1 1 300\n0 150 301\n")
    assert "values beyond the file's own maximum of 300" in refusal(tmp_path / "a.ppm")


def test_a_bmp_with_an_unused_fourth_byte_is_opaque(tmp_path: Path) -> None:
    content = bytearray(encoded("BMP", np.dstack([COLOR, np.full_like(GRAY, 255)])))
    start = int.from_bytes(content[10:14], "little")
    content[start + 3 :: 4] = bytes(len(content[start + 3 :: 4]))
    (tmp_path / "a.bmp").write_bytes(content)
    image = read_image(tmp_path / "a.bmp")
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == ()


def test_a_png_with_large_metadata_is_read(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    saved(tmp_path / "a.png", COLOR, pnginfo=notes)
    assert np.array_equal(decoded(tmp_path / "a.png"), COLOR)


def test_a_lack_of_memory_is_not_an_input_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        read_image(saved(tmp_path / "a.png", COLOR))


def test_the_first_page_of_several_is_used_with_a_note(tmp_path: Path) -> None:
    pages = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
    for name in ("a.tif", "a.png", "a.webp"):
        pages[0].save(
            tmp_path / name, save_all=True, append_images=pages[1:], **({"lossless": True} if "w" in name else {})
        )
        image = read_image(tmp_path / name)
        assert np.array_equal(np.asarray(image.rgb), COLOR), name
        assert image.notes == (NOTE_PAGES,)
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([wide(COLOR), wide(255 - COLOR)]), photometric="rgb")
    image = read_image(tmp_path / "rgb.tif")
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == (NOTE_PAGES,)
    tifffile.imwrite(tmp_path / "f.tif", np.stack([COLOR, 255 - COLOR]).astype(np.float32) / 255, photometric="rgb")
    image = read_image(tmp_path / "f.tif")
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == (NOTE_PAGES,)


def test_damage_to_later_pages_does_not_matter(tmp_path: Path) -> None:
    pages = np.stack([wide(COLOR), wide(255 - COLOR)])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        second = tiff.pages[1].offset
    content = (tmp_path / "a.tif").read_bytes()
    for size in range(second - 100, len(content)):
        (tmp_path / "a.tif").write_bytes(content[:size])
        assert np.array_equal(decoded(tmp_path / "a.tif"), COLOR)


def test_the_second_view_of_an_mpo_is_not_a_page(tmp_path: Path) -> None:
    Image.fromarray(COLOR).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(COLOR)])
    assert read_image(tmp_path / "a.jpg").notes == ()


UPRIGHT = {  # the stored rows as EXIF rotates them
    1: COLOR,
    2: COLOR[:, ::-1],
    3: COLOR[::-1, ::-1],
    4: COLOR[::-1],
    5: COLOR.transpose(1, 0, 2),
    6: np.rot90(COLOR, -1),
    7: np.rot90(COLOR, 2).transpose(1, 0, 2),
    8: np.rot90(COLOR, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_exif_rotation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    expected = UPRIGHT[orientation]
    tag = [(ORIENTATION, "H", 1, orientation, True)]
    for name in ("a.png", "a.webp"):
        saved(tmp_path / name, COLOR, exif=exif, **({"lossless": True} if "w" in name else {}))
    tifffile.imwrite(tmp_path / "8.tif", COLOR, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "16.tif", wide(COLOR), photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "16z.tif", wide(COLOR), photometric="rgb", extratags=tag, compression="zlib")
    tifffile.imwrite(tmp_path / "f.tif", (COLOR / 255).astype(np.float32), photometric="rgb", extratags=tag)
    planes = np.moveaxis(wide(COLOR), -1, 0)
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate", extratags=tag)
    for path in sorted(tmp_path.iterdir()):
        image = read_image(path)
        assert image.size_hw == expected.shape[:2], path.name
        assert np.array_equal(np.asarray(image.rgb), expected), path.name
    tifffile.imwrite(tmp_path / "gray.tif", wide(COLOR[..., 0]), photometric="minisblack", extratags=tag)
    assert np.array_equal(decoded(tmp_path / "gray.tif")[..., 0], expected[..., 0])
    saved(tmp_path / "a.jpg", COLOR[..., 0], exif=exif, quality=98)
    assert abs(decoded(tmp_path / "a.jpg")[..., 0] - expected[..., 0]).max() < 9


def test_damaged_exif_is_ignored_with_a_note(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", COLOR, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12")
    image = read_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == (NOTE_EXIF,)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_color_profile_is_applied(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / name, icc_profile=swapped_profile())
    image = read_image(tmp_path / name)
    assert abs(np.asarray(image.rgb).astype(int) - (0, 0, 255)).max() <= 4
    assert image.notes == ()


def test_a_color_profile_is_applied_with_alpha_and_to_sixteen_bits(tmp_path: Path) -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half.paste((255, 0, 0, 255), (0, 0, 2, 4))
    half.save(tmp_path / "a.png", icc_profile=swapped_profile())
    values = decoded(tmp_path / "a.png")
    assert abs(values[:, :2] - (0, 0, 255)).max() <= 2
    assert (values[:, 2:] == 255).all()
    red = np.zeros((4, 4, 3), np.uint16)
    red[..., 0] = 65535
    for name, options in (("b.tif", {}), ("c.tif", {"planarconfig": "separate"})):
        values = np.moveaxis(red, -1, 0) if options else red
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", iccprofile=swapped_profile(), **options)
        assert abs(decoded(tmp_path / name) - (0, 0, 255)).max() <= 2


def test_srgb_is_unchanged_and_gray_may_have_an_rgb_profile(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decoded(saved(tmp_path / "a.png", COLOR, icc_profile=srgb)), COLOR)
    gray = read_image(saved(tmp_path / "b.png", GRAY, icc_profile=swapped_profile()))
    assert abs(np.asarray(gray.rgb).astype(int) - GRAY[..., None]).max() <= 1
    assert gray.notes == ()


def test_a_profile_misnamed_srgb_is_applied(tmp_path: Path) -> None:
    honest = swapped_profile()
    misnamed = honest.replace("swap".encode("utf-16-be"), "sRGB".encode("utf-16-be"))
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=misnamed)
    assert abs(decoded(tmp_path / "a.png") - (0, 0, 255)).max() <= 4


@pytest.mark.parametrize("profile", [b"nonsense" * 20, b"x", swapped_profile()[:300]])
def test_a_damaged_profile_is_ignored_with_a_note(tmp_path: Path, profile: bytes) -> None:
    image = read_image(saved(tmp_path / "a.png", COLOR, icc_profile=profile))
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == (NOTE_PROFILE,)


def test_a_profile_for_other_channels_is_ignored_with_a_note(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    image = read_image(saved(tmp_path / "a.png", COLOR, icc_profile=lab))
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == (NOTE_PROFILE,)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm"])
def test_the_content_decides_the_format_not_the_name(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", COLOR)
    expected = decoded(path)
    for other in ("jpg", "tif", "png"):
        assert np.array_equal(decoded(path.rename(tmp_path / f"b.{other}")), expected)
        path = tmp_path / f"b.{other}"


@pytest.mark.parametrize("size_wh", [(1, 1), (20000, 30), (1, 3000)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_extreme_shapes_are_resized(tmp_path: Path, size_wh: tuple[int, int], suffix: str) -> None:
    Image.new("L", size_wh, 255).save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    assert image.size_hw == size_wh[::-1]
    pixels = to_pixels(image, 28, (0.5, 0.5, 0.5), (0.5, 0.25, 0.125))
    assert pixels.shape == (3, 28, 28)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels, np.array([1, 2, 4])[:, None, None] * np.ones((1, 28, 28)), rtol=0.01)


@pytest.mark.parametrize(("case", "size"), [("golden-vit", 70), ("golden-vit-quickgelu", 56), ("golden-rn", 96)])
@pytest.mark.parametrize("query", ["query0", "query1", "query2"])
def test_pixels_equal_the_published_programs(case: str, size: int, query: str) -> None:
    expected = load_file(GOLDEN / f"{case}.safetensors")[f"{query}/pixels"]
    pixels = to_pixels(read_image(GOLDEN / "images" / f"{query}.png"), size, CLIP_MEAN, CLIP_STD)
    np.testing.assert_allclose(pixels, expected.reshape(pixels.shape), rtol=0, atol=1e-6)


def test_a_sixteen_bit_copy_gives_the_same_model_input(tmp_path: Path) -> None:
    eight = np.asarray(Image.open(GOLDEN / "images" / "query0.png").convert("RGB"))
    tifffile.imwrite(tmp_path / "a.tif", eight.astype(np.uint16) * 257, photometric="rgb")
    write_png(tmp_path / "a.png", eight.astype(np.uint16) * 257)
    expected = to_pixels(SourceImage(Image.fromarray(eight)), 70, CLIP_MEAN, CLIP_STD)
    for name in ("a.tif", "a.png"):
        assert np.array_equal(to_pixels(read_image(tmp_path / name), 70, CLIP_MEAN, CLIP_STD), expected)


# Files that are refused


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(png(COLOR)))
    expected = "20000 x 20000 pixels are more than the limit of 100000000; reduce the image or raise the limit of"
    assert f"{expected} pixels" in refusal(tmp_path / "bomb.png")
    saved(tmp_path / "a.png", COLOR)
    assert "limit of 1535" in refusal(tmp_path / "a.png", max_pixels=48 * 32 - 1)
    assert read_image(tmp_path / "a.png", max_pixels=48 * 32).size_hw == (32, 48)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_the_limit_can_be_raised_above_pillows(tmp_path: Path, suffix: str) -> None:
    Image.new("1", (10000, 18100)).save(tmp_path / f"a.{suffix}")  # 181 million; Pillow's own limit is 179 million
    assert "raise the limit of pixels" in refusal(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}", max_pixels=200_000_000).size_hw == (18100, 10000)


def test_a_webp_canvas_is_checked_before_it_is_allocated(tmp_path: Path) -> None:
    huge = b"VP8X" + struct.pack("<IB3x", 10, 0) + (2**24 - 1).to_bytes(3, "little") * 2
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(huge)) + b"WEBP" + huge)
    assert "16777216 x 16777216 pixels" in refusal(tmp_path / "a.webp")


def test_a_tiff_of_huge_tiles_is_refused(tmp_path: Path) -> None:
    for name, values in (("8.tif", COLOR), ("f.tif", (COLOR / 255).astype(np.float32))):
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", tile=(16, 16))
        set_tags(tmp_path / name, {322: 65520, 323: 65520})
        assert "65520 x 65520 pixels" in refusal(tmp_path / name)


READ_ALL = """
import pathlib, re, sys
import numpy as np
from aprilcli.io.images import read_image

def peak():  # in KiB; unlike ru_maxrss it does not include the parent process
    return int(re.search(r"VmHWM:\\s*(\\d+)", pathlib.Path("/proc/self/status").read_text())[1])

normal, *paths = map(pathlib.Path, sys.argv[1:])
read_image(normal)
before = peak()
for path in paths:
    assert not np.asarray(read_image(path).rgb).any()
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("values", [wide(GRAY), (COLOR / 255).astype(np.float32)], ids=["16 bit", "float"])
def test_strips_that_expand_beyond_their_size_take_no_memory(tmp_path: Path, values: np.ndarray) -> None:
    normal = tmp_path / "normal.tif"
    tifffile.imwrite(normal, values, photometric="rgb" if values.ndim == 3 else "minisblack")
    paths = [tmp_path / f"{compression}.tif" for compression in COMPRESSIONS]
    for path in paths:
        shutil.copy(normal, path)
        compress(path, path.stem, np.zeros((5000, 10_000), np.uint8))
    compress(normal, COMPRESSIONS[0])
    arguments = [sys.executable, "-c", READ_ALL, str(normal), *map(str, paths)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 25_000  # KiB; each strip expands to twice that, and all bytes beyond its size are ignored


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("tags", [{273: 0}, {279: 0}, {279: 2**31 - 1}], ids=str)
def test_a_missing_strip_is_refused(tmp_path: Path, compression: str | None, tags: dict[int, int]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", wide(COLOR), photometric="rgb", compression=compression)
    set_tags(tmp_path / "a.tif", tags)
    if compression is None and 279 in tags:  # the size of a single uncompressed strip is known without this tag
        assert np.array_equal(decoded(tmp_path / "a.tif"), COLOR)
    else:
        assert "a strip or tile of the TIFF is missing" in refusal(tmp_path / "a.tif")


def test_too_few_strips_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", wide(COLOR), photometric="rgb", compression="zlib")
    set_tags(tmp_path / "a.tif", {278: 8})  # one strip of four
    assert "a strip or tile of the TIFF is missing" in refusal(tmp_path / "a.tif")


def test_a_jpeg_of_too_many_scans_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path / "a.jpg", GRAY, progressive=True).read_bytes()
    start = content.rindex(b"\xff\xda")
    scan, end = content[start:-2], content[-2:]
    (tmp_path / "a.jpg").write_bytes(content[:start] + scan * (MAX_SCANS + 1) + end)
    assert f"more than {MAX_SCANS} scans" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("hidden", [b"", b"\xff\x01"], ids=["plain", "behind a marker without length"])
@pytest.mark.parametrize("progressive", [False, True])
def test_hidden_scans_of_a_jpeg_are_counted(tmp_path: Path, progressive: bool, hidden: bytes) -> None:
    whole = encoded("JPEG", GRAY, progressive=progressive)
    start = whole.index(b"\xff\xda")
    header = whole[start : start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big")]
    (tmp_path / "a.jpg").write_bytes(whole[:start] + header + hidden + header * MAX_SCANS + whole[start:])
    assert f"more than {MAX_SCANS} scans" in refusal(tmp_path / "a.jpg")


def test_a_twelve_bit_jpeg_is_refused_by_name(tmp_path: Path) -> None:
    content = bytearray(encoded("JPEG", GRAY))
    content[content.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(content)
    assert "a damaged JPEG, or an unsupported kind (12 bit" in refusal(tmp_path / "a.jpg")


def test_data_after_a_jpeg_does_not_count_as_scans(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", GRAY, progressive=True)
    before = decoded(path)
    path.write_bytes(path.read_bytes() + b"\xff\xda" * (MAX_SCANS + 1))
    assert np.array_equal(decoded(path), before)


@pytest.mark.parametrize("size_wh", [(2_000_000, 1), (1, 2_000_000)])
def test_a_very_long_side_is_refused(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    (tmp_path / "a.pgm").write_bytes(b"P5\n%d %d\n255\n" % size_wh + bytes(width * height))
    assert "no side may be longer" in refusal(tmp_path / "a.pgm")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not an image, or not in a supported format (JPEG, PNG, TIFF, BMP, WebP, PGM, PPM)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not in a supported format"),
        (b"GIF89a\x01\x00\x01\x00", "not in a supported format"),
        (b"\x89PNG\r\n\x1a\n", "a damaged PNG"),
        (b"\xff\xd8\xff\xe0", "a damaged JPEG"),
        (b"II*\0\0\0\0\0", "image"),
        (b"MM\0+\0\x08\0\0", "image"),
        (b"P5\n-3 4\n255\n", "image"),
        (b"P5\n0 4\n255\n", "image"),
        (b"P5\n10 10\n4095\n123", "truncated"),
        (b"P6\n10 10\n255\n123", "truncated"),
        (b"BM" + bytes(60), "image"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm", "pgm"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    values = wide(GRAY) if suffix == "pgm" else COLOR
    path = saved(tmp_path / f"a.{suffix}", values, **({"lossless": True} if suffix == "webp" else {}))
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(path)


def test_truncated_sixteen_bit_files_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", wide(COLOR))
    tifffile.imwrite(tmp_path / "b.tif", wide(COLOR), photometric="rgb", compression="zlib")
    tifffile.imwrite(tmp_path / "c.tif", (COLOR / 255).astype(np.float32), photometric="rgb")
    for path in sorted(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-600])
        assert refusal(path)


def test_unsupported_tiffs_are_refused_with_advice(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "five.tif",
        np.zeros((5, 8, 8), np.uint16),
        photometric="minisblack",
        planarconfig="separate",
        metadata=None,
    )
    tifffile.imwrite(
        tmp_path / "c.tif", np.zeros((8, 8, 7), np.uint16), photometric="minisblack", planarconfig="contig"
    )
    assert "(7 x 16 bit, photometric 1, compression 1); save it as RGB or gray, uncompressed" in refusal(
        tmp_path / "c.tif"
    )
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((8, 8), np.complex64))
    assert refusal(tmp_path / "z.tif")


def test_unopenable_paths_are_refused_in_one_line(tmp_path: Path) -> None:
    assert "gone.png: cannot be read as an image (No such file or directory)" in refusal(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: not a file" in refusal(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: not a file" in refusal(tmp_path / "pipe.png")
    (tmp_path / "knot.png").symlink_to("knot.png")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "knot.png")


def test_the_message_is_one_line_for_any_name(tmp_path: Path) -> None:
    for name in ("line\nbreak.png", os.fsdecode(b"\xff.png"), "\x1b[31mred.png"):
        (tmp_path / name).write_bytes(b"")
        assert refusal(tmp_path / name).isprintable()


def test_sizes_of_zero_are_refused(tmp_path: Path) -> None:
    content = bytearray(saved(tmp_path / "a.bmp", COLOR).read_bytes())
    struct.pack_into("<i", content, 18, 0)
    (tmp_path / "a.bmp").write_bytes(content)
    assert refusal(tmp_path / "a.bmp")
    for name, values in (("gray.tif", wide(GRAY)), ("float.tif", (COLOR / 255).astype(np.float32))):
        photometric = "rgb" if values.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / name, values, photometric=photometric)
        set_tags(tmp_path / name, {256: 0})
        assert "0 x 32 pixels" in refusal(tmp_path / name)
