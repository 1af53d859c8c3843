"""Images of more than 8 bits per channel: read in full and scaled, or refused."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_kinds import (
    CLEAR,
    COLOR,
    FADE,
    GRAY,
    ON_WHITE,
    compress,
    decoded,
    refusal,
    saved,
    set_tags,
    wide,
    write_png,
)
from PIL import Image

from aprilcli.io.images import NOTE_RANGE, NOTE_TRANSPARENT, read_image

COMPRESSIONS = ["tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "zstd", "lzma"]


def test_sixteen_bit_cmyk_tiff(tmp_path: Path) -> None:
    ink = np.zeros((8, 8, 4), np.uint16)
    ink[..., 0] = 65535
    tifffile.imwrite(tmp_path / "a.tif", ink, photometric="separated")
    assert np.array_equal(decoded(tmp_path / "a.tif")[0, 0], (0, 255, 255))


def test_one_transparent_color_in_sixteen_bits(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), 0x1234, np.uint16)
    values[0, 0] = 0x1235  # differs in the lower byte only
    image = read_image(write_png(tmp_path / "a.png", values, transparent=(0x1235,) * 3))
    assert np.asarray(image.rgb)[0, 0].tolist() == [255] * 3
    assert np.asarray(image.rgb)[1, 1].tolist() == [0x12] * 3
    assert image.notes == (NOTE_RANGE, NOTE_TRANSPARENT)
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
    assert read_image(tmp_path / "a.png").notes == (NOTE_RANGE,)
    assert read_image(tmp_path / "a.png", value_range=(0, 4095)).notes == ()
    assert decoded(tmp_path / "a.png").max() <= 16  # scaled linearly, so dark, not saturated
    assert abs(decoded(tmp_path / "a.png", value_range=(0, 4095))[..., 0] - GRAY).max() <= 1
    write_png(tmp_path / "b.png", wide(COLOR) >> 4)
    assert abs(decoded(tmp_path / "b.png", value_range=(0, 4095)) - COLOR).max() <= 1
    saved(tmp_path / "c.png", COLOR)
    assert np.array_equal(decoded(tmp_path / "c.png", value_range=(0, 4095)), COLOR)  # does not apply to eight bits


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_declares_its_significant_bits(tmp_path: Path, channels: int, bits: int, interlaced: bool) -> None:
    eight = {1: GRAY[..., None], 2: np.dstack([GRAY, FADE]), 3: COLOR, 4: CLEAR}[channels]
    expected = decoded(write_png(tmp_path / "a.png", eight))
    stored = wide(eight) >> (16 - bits)
    forms = {
        "as they are": stored,
        "shifted": (stored << (16 - bits)).astype(np.uint16),
        "scaled": np.rint(stored / (2**bits - 1) * 65535).astype(np.uint16),
    }
    if channels in (2, 4):
        forms["alpha of 16 bits"] = np.dstack([stored[..., :-1], wide(eight)[..., -1:]])
    for name, values in forms.items():
        path = write_png(tmp_path / "a.png", values, interlaced, significant=(bits,) * channels)
        assert abs(decoded(path) - expected).max() <= 1, name
        assert NOTE_RANGE not in read_image(path).notes
    write_png(tmp_path / "a.png", stored, interlaced, significant=(bits,) * channels)
    if channels in (1, 3):  # a given range takes precedence
        half = decoded(tmp_path / "a.png", value_range=(0, 2 ** (bits + 1) - 1))
        assert abs(half - expected / 2).max() <= 1


def test_a_png_without_declared_bits_uses_its_type(tmp_path: Path) -> None:
    for significant in ((), (16,), (0,)):
        path = write_png(tmp_path / "a.png", wide(GRAY)[..., None] >> 4, significant=significant)
        assert decoded(path).max() <= 16
        assert read_image(path).notes == (NOTE_RANGE,)


@pytest.mark.parametrize("options", [{}, {"compression": "zlib"}, {"planarconfig": "separate"}], ids=str)
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_tiff_declares_its_largest_value(tmp_path: Path, bits: int, options: dict[str, Any]) -> None:
    values = wide(COLOR) >> (16 - bits)
    values = np.moveaxis(values, -1, 0) if options.get("planarconfig") else values
    for code in (281, 341):
        tags = [(code, "H", 3, (2**bits - 1,) * 3, True)]
        tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=tags, **options)
        assert abs(decoded(tmp_path / "a.tif") - COLOR).max() <= 1
        assert read_image(tmp_path / "a.tif").notes == ()
        half = decoded(tmp_path / "a.tif", value_range=(0, 2 ** (bits + 1) - 1))
        assert abs(half - COLOR / 2).max() <= 1


def test_a_tiff_declares_its_smallest_value(tmp_path: Path) -> None:
    values = np.rint(GRAY / 255 * (4095 - 256) + 256).astype(np.uint16)
    tags = [(280, "H", 1, 256, True), (281, "H", 1, 4095, True)]
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=tags)
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)
    tifffile.imwrite(tmp_path / "a.tif", 4351 - values, photometric="miniswhite", extratags=tags)
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)


def test_a_tiff_of_floats_declares_its_largest_value(tmp_path: Path) -> None:
    tags = [(341, "f", 1, 4095.0, True)]
    values = (GRAY / 255 * 4095).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=tags)
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GRAY)


@pytest.mark.parametrize("declared", [(0, 3000), (17, 60001), (0, 1023)])
def test_values_that_are_no_range_are_ignored(tmp_path: Path, declared: tuple[int, int]) -> None:
    tags = [(280, "H", 1, declared[0], True), (281, "H", 1, declared[1], True)]
    values = np.rint(GRAY / 255 * 3000).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", extratags=tags)
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], np.rint(values / 257))
    assert read_image(tmp_path / "a.tif").notes == (NOTE_RANGE,)


@pytest.mark.parametrize(
    ("values", "is_noted"),
    [
        (wide(GRAY), False),
        (wide(GRAY) // 3, False),  # a dark image
        (wide(GRAY) >> 2, True),
        (wide(GRAY) >> 4, True),
        ((GRAY.astype(np.int32) * 257 - 32768).astype(np.int16), False),
        (GRAY.astype(np.int16) * 16, True),
        ((GRAY / 255).astype(np.float32), False),
        ((GRAY / 255 / 16).astype(np.float32), True),
        (GRAY // 16, False),
    ],
    ids=["16 bit", "dark", "14 bit", "12 bit", "signed", "no negative values", "float", "float of 12 bit", "8 bit"],
)
def test_a_small_part_of_the_range_gives_a_note(tmp_path: Path, values: np.ndarray, is_noted: bool) -> None:
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    assert read_image(tmp_path / "a.tif").notes == ((NOTE_RANGE,) if is_noted else ())


def test_values_outside_the_range_are_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 1500, 2000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png", value_range=(1000, 2000))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


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


def test_damage_to_later_pages_does_not_matter(tmp_path: Path) -> None:
    pages = np.stack([wide(COLOR), wide(255 - COLOR)])
    tifffile.imwrite(tmp_path / "a.tif", pages, photometric="rgb", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        second = tiff.pages[1].offset
    content = (tmp_path / "a.tif").read_bytes()
    for size in range(second - 100, len(content)):
        (tmp_path / "a.tif").write_bytes(content[:size])
        assert np.array_equal(decoded(tmp_path / "a.tif"), COLOR)


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
