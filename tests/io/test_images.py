"""Pictures as cameras write them, and as nobody should: decoded right, or refused in one line."""

from __future__ import annotations

import itertools
import os
import struct
import zlib
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
    NO_EXIF,
    NO_PROFILE,
    SOME_PAGE,
    TRANSPARENT,
    SourceImage,
    read_image,
    to_pixels,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
GREY = np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)
COLOUR = np.stack([GREY, GREY.T.reshape(32, 48), 255 - GREY], axis=-1)
FADE = np.broadcast_to(np.linspace(0, 255, 48).astype(np.uint8), (32, 48))
CLEAR = np.dstack([COLOUR, FADE])
ON_WHITE = np.rint(COLOUR * (FADE[..., None] / 255) + 255 - FADE[..., None].astype(float)).astype(int)


def decoded(path: Path, **options: Any) -> np.ndarray:
    picture = read_image(path, **options)
    assert picture.rgb.mode == "RGB"
    return np.asarray(picture.rgb).astype(int)


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: Any) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert message.encode().decode().startswith(str(path.parent))
    return message


def write_png(path: Path, *arguments: Any, **options: Any) -> Path:
    path.write_bytes(png(*arguments, **options))
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.ppm", "a.webp", "a.pnm"])
def test_lossless_colour(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path / name, COLOUR, **options)
    assert np.array_equal(decoded(path), COLOUR)
    assert read_image(path).notes == ()


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_jpeg(tmp_path: Path, options: dict[str, object]) -> None:
    smooth = np.stack([GREY, GREY[::-1], GREY[:, ::-1]], axis=-1)
    values = decoded(saved(tmp_path / "a.JPG", smooth, quality=98, **options))
    assert abs(values - smooth).mean() < 2


def test_grey_jpeg(tmp_path: Path) -> None:
    values = decoded(saved(tmp_path / "grey.jpg", GREY, quality=98))
    assert abs(values - GREY[..., None]).mean() < 1


@pytest.mark.parametrize("name", ["a.jpg", "a.tif"])
def test_cmyk_is_not_inverted(tmp_path: Path, name: str) -> None:
    # Pillow, as Adobe's programs, stores a CMYK JPEG inverted and says so in a marker.
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
    source = (
        Image.fromarray(COLOUR).convert("P").convert("PA") if mode == "PA" else Image.fromarray(COLOUR).convert(mode)
    )
    source.save(tmp_path / f"a.{suffix}")
    assert np.array_equal(decoded(tmp_path / f"a.{suffix}"), np.asarray(source.convert("RGB")).astype(int))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp"])
def test_alpha_is_laid_on_white_and_said(tmp_path: Path, name: str) -> None:
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    picture = read_image(saved(tmp_path / name, CLEAR, **options))
    assert abs(np.asarray(picture.rgb).astype(int) - ON_WHITE).max() <= 1
    assert picture.notes == (TRANSPARENT,)


def test_opaque_alpha_is_not_worth_a_word(tmp_path: Path) -> None:
    opaque = np.dstack([COLOUR, np.full_like(GREY, 255)])
    assert read_image(saved(tmp_path / "b.png", opaque)).notes == ()


def test_grey_alpha_and_transparent_palettes(tmp_path: Path) -> None:
    expected = np.rint(GREY * (FADE / 255) + 255 - FADE.astype(float))
    values = decoded(write_png(tmp_path / "la.png", np.dstack([GREY, FADE])))
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
    eight = {1: GREY[..., None], 2: np.dstack([GREY, FADE]), 3: COLOUR, 4: CLEAR}[channels]
    path = write_png(tmp_path / "a.png", eight if dtype is np.uint8 else wide(eight), interlaced)
    expected = {1: GREY[..., None], 3: COLOUR, 4: ON_WHITE}.get(channels)
    if expected is None:
        expected = np.rint(GREY * (FADE / 255) + 255 - FADE.astype(float))[..., None]
    assert abs(decoded(path) - expected).max() <= (0 if channels in (1, 3) else 1)


def test_one_transparent_colour_in_sixteen_bits(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), 0x1234, np.uint16)
    values[0, 0] = 0x1235  # the same in its upper bytes
    picture = read_image(write_png(tmp_path / "a.png", values, transparent=(0x1235,) * 3))
    assert np.asarray(picture.rgb)[0, 0].tolist() == [255] * 3
    assert np.asarray(picture.rgb)[1, 1].tolist() == [0x12] * 3
    assert picture.notes == (TRANSPARENT,)
    grey = write_png(tmp_path / "b.png", values[..., :1], transparent=(0x1235,))
    assert decoded(grey)[0, 0].tolist() == [255] * 3
    assert decoded(grey)[1, 1].tolist() == [0x12] * 3


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bit_grey_is_its_eight_bit_copy(tmp_path: Path, name: str) -> None:
    Image.fromarray(wide(GREY)).save(tmp_path / name)
    assert np.array_equal(decoded(tmp_path / name), GREY[..., None] * np.ones(3, int))


SIXTEEN_BIT_OPTIONS = (
    {},
    {"byteorder": ">"},
    {"compression": "zlib"},
    {"compression": "zlib", "byteorder": ">"},
    {"compression": "zlib", "predictor": True},
    {"tile": (16, 16)},
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
    eight = {1: GREY, 3: COLOUR, 4: CLEAR}[channels]
    extra = {1: {"photometric": "minisblack"}, 3: {"photometric": "rgb"}}.get(channels)
    values = wide(eight)
    if options.get("planarconfig"):
        values = np.moveaxis(values, -1, 0)
    tifffile.imwrite(tmp_path / "a.tif", values, **options, **(extra or {"photometric": "rgb", "extrasamples": [2]}))
    expected = {1: GREY[..., None], 3: COLOUR, 4: ON_WHITE}[channels]
    assert abs(decoded(tmp_path / "a.tif") - expected).max() <= (channels == 4)
    # Twelve bits in sixteen: with their range they come out as the eight-bit picture, alpha left alone.
    twelve = (values >> 4).astype(np.uint16)
    if channels == 4:
        twelve[..., 3] = values[..., 3]
    tifffile.imwrite(tmp_path / "b.tif", twelve, **options, **(extra or {"photometric": "rgb", "extrasamples": [2]}))
    assert abs(decoded(tmp_path / "b.tif", value_range=(0, 4095)) - expected).max() <= 1


def test_premultiplied_alpha_in_sixteen_bits(tmp_path: Path) -> None:
    premultiplied = wide(COLOUR).astype(np.int64) * wide(FADE)[..., None] // 65535
    values = np.dstack([premultiplied, wide(FADE)]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[1])
    assert abs(decoded(tmp_path / "a.tif") - ON_WHITE).max() <= 2


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_is_zero(tmp_path: Path, dtype: type) -> None:
    values = {np.uint8: 255 - GREY, np.uint16: 65535 - wide(GREY), np.float32: 1 - GREY / 255}[dtype].astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite")
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GREY)


def test_twelve_bits_in_sixteen_need_a_range(tmp_path: Path) -> None:
    twelve = wide(GREY) >> 4
    Image.fromarray(twelve).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").max() <= 16  # linear, so dark: never saturated
    assert abs(decoded(tmp_path / "a.png", value_range=(0, 4095))[..., 0] - GREY).max() <= 1
    write_png(tmp_path / "b.png", wide(COLOUR) >> 4)
    assert abs(decoded(tmp_path / "b.png", value_range=(0, 4095)) - COLOUR).max() <= 1
    saved(tmp_path / "c.png", COLOUR)
    assert np.array_equal(decoded(tmp_path / "c.png", value_range=(0, 4095)), COLOUR)  # eight bits are left alone


def test_values_beyond_the_range_are_cut(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 1000, 1500, 2000, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png", value_range=(1000, 2000))[0, :, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_a_range_that_is_none_is_wrong_usage(tmp_path: Path, value_range: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="--range"):
        read_image(saved(tmp_path / "a.png", COLOUR), value_range=value_range)


@pytest.mark.parametrize("white", [1, 100, 255, 1023, 4095, 65535])
@pytest.mark.parametrize("magic", [2, 3, 5, 6])
def test_pnm_is_scaled_by_its_own_white(tmp_path: Path, magic: int, white: int) -> None:
    values = np.rint((GREY if magic in (2, 5) else COLOUR) / 255 * white).astype(int)
    content = f"P{magic}\n# a comment\n48 32\n{white}\n".encode()
    if magic in (2, 3):
        content += " ".join(map(str, values.ravel())).encode()
    else:
        content += values.astype(">u2" if white > 255 else "u1").tobytes()
    (tmp_path / "a.pnm").write_bytes(content)
    expected = np.rint(values / white * 255).astype(int)
    assert abs(decoded(tmp_path / "a.pnm") - (expected if magic in (3, 6) else expected[..., None])).max() == 0
    if magic != 3 and white > 255:  # a range is in the file's own values
        half = np.rint(np.clip(values / (white // 2), 0, 1) * 255).astype(int)
        ranged = decoded(tmp_path / "a.pnm", value_range=(0, white // 2))
        assert np.array_equal(ranged if magic == 6 else ranged[..., 0], half)


def test_bitmaps_in_pnm(tmp_path: Path) -> None:
    (tmp_path / "a.pbm").write_bytes(b"P1\n3 2\n1 0 1\n0 1 0\n")
    assert decoded(tmp_path / "a.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    (tmp_path / "b.pbm").write_bytes(b"P4\n3 2\n" + bytes([0b10100000, 0b01000000]))
    assert decoded(tmp_path / "b.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("values", [GREY, COLOUR], ids=["grey", "colour"])
def test_float_tiff(tmp_path: Path, dtype: type, values: np.ndarray) -> None:
    photometric = "rgb" if values.ndim == 3 else "minisblack"
    expected = values if values.ndim == 3 else values[..., None]
    tifffile.imwrite(tmp_path / "unit.tif", (values / 255).astype(dtype), photometric=photometric)
    assert abs(decoded(tmp_path / "unit.tif") - expected).max() == 0
    tifffile.imwrite(tmp_path / "wide.tif", values.astype(dtype), photometric=photometric)
    assert "values from 0 to 255; say which are black and white with --range LO,HI" in refusal(tmp_path / "wide.tif")
    assert np.array_equal(decoded(tmp_path / "wide.tif", value_range=(0, 255)), expected * np.ones(3, int))
    for bad in (np.nan, np.inf):
        spoilt = (values / 255).astype(dtype)
        spoilt[3, 4] = bad
        tifffile.imwrite(tmp_path / "bad.tif", spoilt, photometric=photometric)
        assert "NaN or infinite" in refusal(tmp_path / "bad.tif")
        assert "NaN or infinite" in refusal(tmp_path / "bad.tif", value_range=(0, 1))


def test_a_deflated_float_map_is_a_picture_too(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "map.tiff", (GREY / 255).astype(np.float32), compression="zlib", predictor=False)
    assert np.array_equal(decoded(tmp_path / "map.tiff")[..., 0], GREY)


def test_float_pnm(tmp_path: Path) -> None:
    rows = (GREY / 255).astype("<f4")[::-1]
    (tmp_path / "a.pfm").write_bytes(b"Pf\n48 32\n-1.0\n" + rows.tobytes())
    assert np.array_equal(decoded(tmp_path / "a.pfm")[..., 0], GREY)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.uint32, np.int64])
def test_integers_of_other_types(tmp_path: Path, dtype: type) -> None:
    values = GREY.astype(dtype) * 100 + 1000
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack")
    assert np.array_equal(decoded(tmp_path / "a.tif", value_range=(1000, 26500))[..., 0], GREY)
    if dtype is np.int16:  # by the type's range
        assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], np.rint((values + 32768.0) / 257))
    else:
        assert "--range LO,HI" in refusal(tmp_path / "a.tif")


def test_unsigned_32_bits_do_not_turn_negative(tmp_path: Path) -> None:
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
def test_compressed_samples_are_swapped_once(tmp_path: Path, dtype: str, options: dict[str, Any]) -> None:
    values = GREY.astype(dtype)
    compressed = {"photometric": "minisblack", "byteorder": ">", "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", values, **compressed, **options)
    assert np.array_equal(decoded(tmp_path / "a.tif", value_range=(0, 255))[..., 0], GREY)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("colour", [GREY[..., None], COLOUR], ids=["grey", "colour"])
def test_only_what_is_called_alpha_is_alpha(tmp_path: Path, dtype: type, planes: str, colour: np.ndarray) -> None:
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    for kind, extra in ((0, FADE), (2, FADE), (1, FADE)):
        opacity = FADE[..., None] / 255
        stored = colour * (opacity if kind == 1 else 1.0)
        values = (np.dstack([np.rint(stored), extra]) * scale).astype(dtype)
        tifffile.imwrite(
            tmp_path / "a.tif",
            np.moveaxis(values, -1, 0) if planes == "separate" else values,
            photometric="rgb" if colour.shape[2] == 3 else "minisblack",
            planarconfig=planes,
            extrasamples=[kind],
        )
        picture = read_image(tmp_path / "a.tif")
        expected = colour if kind == 0 else np.rint(colour * opacity + 255 - 255 * opacity)
        assert abs(np.asarray(picture.rgb).astype(int) - expected).max() <= (3 if kind == 1 else 1)
        assert picture.notes == ((TRANSPARENT,) if kind else ())


def test_alpha_of_32_bits_spans_its_type(tmp_path: Path) -> None:
    values = np.dstack([COLOUR.astype(np.uint32), np.full_like(GREY, 2**32 - 1, dtype=np.uint32)])
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extrasamples=[2])
    picture = read_image(tmp_path / "a.tif", value_range=(0, 255))
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_white_may_be_zero_beside_alpha(tmp_path: Path, dtype: type) -> None:
    scale = {np.uint8: 1, np.uint16: 257, np.float32: 1 / 255}[dtype]
    values = (np.dstack([255.0 - GREY, FADE]) * scale).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="miniswhite", planarconfig="contig", extrasamples=[2])
    expected = np.rint(GREY * (FADE / 255) + 255 - FADE.astype(float))
    assert abs(decoded(tmp_path / "a.tif")[..., 0] - expected).max() <= 1


def test_premultiplied_floats_may_have_a_range(tmp_path: Path) -> None:
    alpha = np.full((32, 48, 1), 0.5)
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.dstack([COLOUR * alpha, alpha]).astype(np.float32),
        photometric="rgb",
        extrasamples=[1],
    )
    expected = np.rint(COLOUR / 2 + 127.5)
    assert abs(decoded(tmp_path / "a.tif", value_range=(0, 255)) - expected).max() <= 1


def test_compressed_planes_of_eight_bits_are_read(tmp_path: Path) -> None:
    planes = np.moveaxis(CLEAR, -1, 0)
    options = {"photometric": "rgb", "planarconfig": "separate", "extrasamples": [2], "compression": "zlib"}
    tifffile.imwrite(tmp_path / "a.tif", planes, **options)
    assert abs(decoded(tmp_path / "a.tif") - ON_WHITE).max() <= 1


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits"])
def test_compressed_signed_bytes_begin_with_black(tmp_path: Path, compression: str) -> None:
    signed = (GREY.astype(int) - 128).astype(np.int8).view(np.uint8)
    saved(tmp_path / "a.tif", signed, compression=compression, tiffinfo={339: 2})
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GREY)


def test_signed_bytes_begin_with_black(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", (GREY.astype(int) - 128).astype(np.int8), photometric="minisblack")
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], GREY)


def test_text_of_more_than_eight_bits_keeps_them(tmp_path: Path) -> None:
    twelve = wide(COLOUR) >> 4
    numbers = b" ".join(b"%d" % value for value in twelve.flat)
    (tmp_path / "a.ppm").write_bytes(b"P3 48 32 65535\n# twelve bits\n" + numbers)
    assert abs(decoded(tmp_path / "a.ppm", value_range=(0, 4095)) - COLOUR).max() <= 1
    (tmp_path / "a.ppm").write_bytes(b"P3 48 32 65535\n" + numbers[:-2000])
    assert "truncated" in refusal(tmp_path / "a.ppm")
    (tmp_path / "a.ppm").write_bytes(b"P3 1 1 300\n#" + b"x" * 1000 + b"\n0 150 300\n")
    assert decoded(tmp_path / "a.ppm").tolist() == [[[0, 128, 255]]]
    (tmp_path / "a.ppm").write_bytes(b"P3 1 1 300\n0 150 301\n")
    assert "beyond its own white" in refusal(tmp_path / "a.ppm")


def test_a_bitmap_whose_fourth_byte_is_left_at_zero_is_opaque(tmp_path: Path) -> None:
    content = bytearray(encoded("BMP", np.dstack([COLOUR, np.full_like(GREY, 255)])))
    start = int.from_bytes(content[10:14], "little")
    content[start + 3 :: 4] = bytes(len(content[start + 3 :: 4]))
    (tmp_path / "a.bmp").write_bytes(content)
    picture = read_image(tmp_path / "a.bmp")
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == ()


def test_a_png_with_much_to_say_is_read(tmp_path: Path) -> None:
    notes = PngImagePlugin.PngInfo()
    notes.add_itxt("XML:com.adobe.xmp", "x" * 3_000_000, zip=True)
    saved(tmp_path / "a.png", COLOUR, pnginfo=notes)
    assert np.array_equal(decoded(tmp_path / "a.png"), COLOUR)


def test_no_memory_is_not_the_pictures_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(MemoryError):
        read_image(saved(tmp_path / "a.png", COLOUR))


def test_first_page_of_many_is_said(tmp_path: Path) -> None:
    pages = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    for name in ("a.tif", "a.png", "a.webp"):
        pages[0].save(
            tmp_path / name, save_all=True, append_images=pages[1:], **({"lossless": True} if "w" in name else {})
        )
        picture = read_image(tmp_path / name)
        assert np.array_equal(np.asarray(picture.rgb), COLOUR), name
        assert picture.notes == (SOME_PAGE,)
    tifffile.imwrite(tmp_path / "rgb.tif", np.stack([wide(COLOUR), wide(255 - COLOUR)]), photometric="rgb")
    picture = read_image(tmp_path / "rgb.tif")
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == (SOME_PAGE,)
    tifffile.imwrite(tmp_path / "f.tif", np.stack([COLOUR, 255 - COLOUR]).astype(np.float32) / 255, photometric="rgb")
    picture = read_image(tmp_path / "f.tif")
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == (SOME_PAGE,)


def test_a_phone_s_second_view_is_not_a_page(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.fromarray(COLOUR)])
    assert read_image(tmp_path / "a.jpg").notes == ()


UPRIGHT = {  # how EXIF says to turn the stored rows
    1: COLOUR,
    2: COLOUR[:, ::-1],
    3: COLOUR[::-1, ::-1],
    4: COLOUR[::-1],
    5: COLOUR.transpose(1, 0, 2),
    6: np.rot90(COLOUR, -1),
    7: np.rot90(COLOUR, 2).transpose(1, 0, 2),
    8: np.rot90(COLOUR, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_the_cameras_rotation_is_applied_once(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    expected = UPRIGHT[orientation]
    tag = [(ORIENTATION, "H", 1, orientation, True)]
    for name in ("a.png", "a.webp"):
        saved(tmp_path / name, COLOUR, exif=exif, **({"lossless": True} if "w" in name else {}))
    tifffile.imwrite(tmp_path / "8.tif", COLOUR, photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "16.tif", wide(COLOUR), photometric="rgb", extratags=tag)
    tifffile.imwrite(tmp_path / "16z.tif", wide(COLOUR), photometric="rgb", extratags=tag, compression="zlib")
    tifffile.imwrite(tmp_path / "f.tif", (COLOUR / 255).astype(np.float32), photometric="rgb", extratags=tag)
    planes = np.moveaxis(wide(COLOUR), -1, 0)
    tifffile.imwrite(tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate", extratags=tag)
    for path in sorted(tmp_path.iterdir()):
        picture = read_image(path)
        assert picture.size_hw == expected.shape[:2], path.name
        assert np.array_equal(np.asarray(picture.rgb), expected), path.name
    tifffile.imwrite(tmp_path / "grey.tif", wide(COLOUR[..., 0]), photometric="minisblack", extratags=tag)
    assert np.array_equal(decoded(tmp_path / "grey.tif")[..., 0], expected[..., 0])
    saved(tmp_path / "a.jpg", COLOUR[..., 0], exif=exif, quality=98)
    assert abs(decoded(tmp_path / "a.jpg")[..., 0] - expected[..., 0]).max() < 9


def test_damaged_exif_costs_the_rotation_not_the_picture(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", COLOUR, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff\x01\x12")
    picture = read_image(tmp_path / "a.png")
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == (NO_EXIF,)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.webp"])
def test_a_colour_profile_is_applied(tmp_path: Path, name: str) -> None:
    Image.new("RGB", (16, 16), (255, 0, 0)).save(tmp_path / name, icc_profile=swapped_profile())
    picture = read_image(tmp_path / name)
    assert abs(np.asarray(picture.rgb).astype(int) - (0, 0, 255)).max() <= 4
    assert picture.notes == ()


def test_a_colour_profile_is_applied_under_alpha_and_to_sixteen_bits(tmp_path: Path) -> None:
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


def test_srgb_is_left_as_it_is_and_grey_may_carry_a_profile_for_colour(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert np.array_equal(decoded(saved(tmp_path / "a.png", COLOUR, icc_profile=srgb)), COLOUR)
    grey = read_image(saved(tmp_path / "b.png", GREY, icc_profile=swapped_profile()))
    assert abs(np.asarray(grey.rgb).astype(int) - GREY[..., None]).max() <= 1
    assert grey.notes == ()


def test_a_profile_called_srgb_that_is_another_is_applied(tmp_path: Path) -> None:
    honest = swapped_profile()
    misnamed = honest.replace("swap".encode("utf-16-be"), "sRGB".encode("utf-16-be"))
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "a.png", icc_profile=misnamed)
    assert abs(decoded(tmp_path / "a.png") - (0, 0, 255)).max() <= 4


@pytest.mark.parametrize("profile", [b"nonsense" * 20, b"x", swapped_profile()[:300]])
def test_a_broken_profile_is_left_out_and_said(tmp_path: Path, profile: bytes) -> None:
    picture = read_image(saved(tmp_path / "a.png", COLOUR, icc_profile=profile))
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == (NO_PROFILE,)


def test_a_profile_for_other_channels_is_left_out_and_said(tmp_path: Path) -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    picture = read_image(saved(tmp_path / "a.png", COLOUR, icc_profile=lab))
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert picture.notes == (NO_PROFILE,)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm"])
def test_content_decides_over_the_name(tmp_path: Path, suffix: str) -> None:
    path = saved(tmp_path / f"a.{suffix}", COLOUR)
    expected = decoded(path)
    for other in ("jpg", "tif", "png"):
        assert np.array_equal(decoded(path.rename(tmp_path / f"b.{other}")), expected)
        path = tmp_path / f"b.{other}"


@pytest.mark.parametrize("size_wh", [(1, 1), (20000, 30), (1, 3000)])
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_odd_shapes_are_squashed(tmp_path: Path, size_wh: tuple[int, int], suffix: str) -> None:
    Image.new("L", size_wh, 255).save(tmp_path / f"a.{suffix}")
    picture = read_image(tmp_path / f"a.{suffix}")
    assert picture.size_hw == size_wh[::-1]
    pixels = to_pixels(picture, 28, (0.5, 0.5, 0.5), (0.5, 0.25, 0.125))
    assert pixels.shape == (3, 28, 28)
    assert pixels.dtype == np.float32
    assert pixels.flags.c_contiguous
    np.testing.assert_allclose(pixels, np.array([1, 2, 4])[:, None, None] * np.ones((1, 28, 28)), rtol=0.01)


@pytest.mark.parametrize(("case", "size"), [("golden-vit", 70), ("golden-vit-quickgelu", 56), ("golden-rn", 96)])
@pytest.mark.parametrize("query", ["query0", "query1", "query2"])
def test_pixels_are_the_published_programs(case: str, size: int, query: str) -> None:
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


# What is refused


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb(png(COLOUR)))
    expected = "20000 x 20000 pixels are more than the limit of 100000000; make it smaller, or raise that"
    assert expected in refusal(tmp_path / "bomb.png")
    saved(tmp_path / "a.png", COLOUR)
    assert "limit of 1535" in refusal(tmp_path / "a.png", max_pixels=48 * 32 - 1)
    assert read_image(tmp_path / "a.png", max_pixels=48 * 32).size_hw == (32, 48)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_the_limit_can_be_raised_beyond_that_of_the_decoder(tmp_path: Path, suffix: str) -> None:
    Image.new("1", (10000, 18100)).save(tmp_path / f"a.{suffix}")  # 181 million; Pillow's own guard ends at 179
    assert "--max-pixels" in refusal(tmp_path / f"a.{suffix}")
    assert read_image(tmp_path / f"a.{suffix}", max_pixels=200_000_000).size_hw == (18100, 10000)


def test_a_webp_canvas_is_looked_up_before_it_is_allocated(tmp_path: Path) -> None:
    huge = b"VP8X" + struct.pack("<IB3x", 10, 0) + (2**24 - 1).to_bytes(3, "little") * 2
    (tmp_path / "a.webp").write_bytes(b"RIFF" + struct.pack("<I", 4 + len(huge)) + b"WEBP" + huge)
    assert "16777216 x 16777216 pixels" in refusal(tmp_path / "a.webp")


def test_a_tiff_of_huge_tiles_is_refused(tmp_path: Path) -> None:
    for name, values in (("8.tif", COLOUR), ("f.tif", (COLOUR / 255).astype(np.float32))):
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", tile=(16, 16))
        content = (tmp_path / name).read_bytes()
        with tifffile.TiffFile(tmp_path / name) as tiff:
            places = [tiff.pages[0].tags[code].valueoffset for code in (322, 323)]
        for place in places:
            content = content[:place] + struct.pack("<H", 65520) + content[place + 2 :]
        (tmp_path / name).write_bytes(content)
        assert "65520 x 65520 pixels" in refusal(tmp_path / name)


def test_a_strip_that_unpacks_without_end_is_refused(tmp_path: Path) -> None:
    values = (COLOUR / 255).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", compression="zlib", rowsperstrip=32)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        offset, count = tiff.pages[0].tags[273], tiff.pages[0].tags[279]
        assert np.array_equal(decoded(tmp_path / "a.tif"), COLOUR)
    content = bytearray((tmp_path / "a.tif").read_bytes())
    bomb = zlib.compress(bytes(50_000_000), 9)
    for tag, value in ((offset, len(content)), (count, len(bomb))):
        struct.pack_into("<I", content, tag.offset + 8, value)
        struct.pack_into("<H", content, tag.offset + 2, 4)  # a LONG, in place
    (tmp_path / "a.tif").write_bytes(bytes(content) + bomb)
    assert "unpacks to more than it should hold" in refusal(tmp_path / "a.tif")


def test_a_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    content = saved(tmp_path / "a.jpg", GREY, progressive=True).read_bytes()
    start = content.rindex(b"\xff\xda")
    scan, end = content[start:-2], content[-2:]
    (tmp_path / "a.jpg").write_bytes(content[:start] + scan * (MAX_SCANS + 1) + end)
    assert f"more than {MAX_SCANS} scans" in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("hidden", [b"", b"\xff\x01"], ids=["plain", "behind a marker without length"])
@pytest.mark.parametrize("progressive", [False, True])
def test_no_jpeg_hides_its_scans(tmp_path: Path, progressive: bool, hidden: bytes) -> None:
    whole = encoded("JPEG", GREY, progressive=progressive)
    start = whole.index(b"\xff\xda")
    header = whole[start : start + 2 + int.from_bytes(whole[start + 2 : start + 4], "big")]
    (tmp_path / "a.jpg").write_bytes(whole[:start] + header + hidden + header * MAX_SCANS + whole[start:])
    assert f"more than {MAX_SCANS} scans" in refusal(tmp_path / "a.jpg")


def test_a_jpeg_of_twelve_bits_is_called_one(tmp_path: Path) -> None:
    content = bytearray(encoded("JPEG", GREY))
    content[content.index(b"\xff\xc0") + 4] = 12
    (tmp_path / "a.jpg").write_bytes(content)
    assert "a damaged JPEG, or of a kind that cannot be read (12 bit" in refusal(tmp_path / "a.jpg")


def test_packed_bits_without_end_are_refused(tmp_path: Path) -> None:
    strip = b"\x81\0" * 1_000_000
    tifffile.imwrite(tmp_path / "a.tif", (COLOUR / 255).astype(np.float32), photometric="rgb")
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        places = {code: tiff.pages[0].tags[code].valueoffset for code in (259, 273, 279)}
    content = bytearray((tmp_path / "a.tif").read_bytes())
    struct.pack_into("<H", content, places[259], 32773)
    struct.pack_into("<I", content, places[273], len(content))
    struct.pack_into("<I", content, places[279], len(strip))
    (tmp_path / "a.tif").write_bytes(bytes(content) + strip)
    assert "compression 32773" in refusal(tmp_path / "a.tif")


def test_what_follows_a_jpeg_is_no_scan_of_it(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", GREY, progressive=True)
    before = decoded(path)
    path.write_bytes(path.read_bytes() + b"\xff\xda" * (MAX_SCANS + 1))
    assert np.array_equal(decoded(path), before)


@pytest.mark.parametrize("size_wh", [(2_000_000, 1), (1, 2_000_000)])
def test_a_side_out_of_all_proportion_is_refused(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    width, height = size_wh
    (tmp_path / "a.pgm").write_bytes(b"P5\n%d %d\n255\n" % size_wh + bytes(width * height))
    assert "no side may be longer" in refusal(tmp_path / "a.pgm")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a picture, or not in a known format (JPEG, PNG, TIFF, BMP, WebP, PGM, PPM)"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not in a known format"),
        (b"GIF89a\x01\x00\x01\x00", "not in a known format"),
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (b"\xff\xd8\xff\xe0", "picture"),
        (b"II*\0\0\0\0\0", "picture"),
        (b"MM\0+\0\x08\0\0", "picture"),
        (b"P5\n-3 4\n255\n", "picture"),
        (b"P5\n0 4\n255\n", "picture"),
        (b"P5\n10 10\n4095\n123", "truncated"),
        (b"P6\n10 10\n255\n123", "truncated"),
        (b"BM" + bytes(60), "picture"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "picture"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    assert reason in refusal(tmp_path / "a.jpg")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp", "ppm", "pgm"])
def test_truncated_files_are_refused(tmp_path: Path, suffix: str) -> None:
    values = wide(GREY) if suffix == "pgm" else COLOUR
    path = saved(tmp_path / f"a.{suffix}", values, **({"lossless": True} if suffix == "webp" else {}))
    whole = path.read_bytes()
    for share in (0.02, 0.3, 0.6, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        assert refusal(path)


def test_truncated_sixteen_bit_files_are_refused(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", wide(COLOUR))
    tifffile.imwrite(tmp_path / "b.tif", wide(COLOUR), photometric="rgb", compression="zlib")
    tifffile.imwrite(tmp_path / "c.tif", (COLOUR / 255).astype(np.float32), photometric="rgb")
    for path in sorted(tmp_path.iterdir()):
        path.write_bytes(path.read_bytes()[:-600])
        assert refusal(path)


def test_tiff_kinds_that_stay_foreign_say_what_to_do(tmp_path: Path) -> None:
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
    assert "(7 x 16 bit, photometric 1, compression 1); save it as RGB or grey, uncompressed" in refusal(
        tmp_path / "c.tif"
    )
    tifffile.imwrite(tmp_path / "z.tif", np.zeros((8, 8), np.complex64))
    assert refusal(tmp_path / "z.tif")


def test_what_cannot_be_opened_is_refused_in_one_line(tmp_path: Path) -> None:
    assert "gone.png: cannot be read as a picture (No such file or directory)" in refusal(tmp_path / "gone.png")
    (tmp_path / "folder.png").mkdir()
    assert "folder.png: not a file" in refusal(tmp_path / "folder.png")
    os.mkfifo(tmp_path / "pipe.png")
    assert "pipe.png: not a file" in refusal(tmp_path / "pipe.png")
    (tmp_path / "knot.png").symlink_to("knot.png")
    assert "Too many levels of symbolic links" in refusal(tmp_path / "knot.png")


def test_the_line_stays_one_whatever_the_name(tmp_path: Path) -> None:
    for name in ("line\nbreak.png", os.fsdecode(b"\xff.png"), "\x1b[31mred.png"):
        (tmp_path / name).write_bytes(b"")
        assert refusal(tmp_path / name).isprintable()


def test_sizes_of_zero_are_refused(tmp_path: Path) -> None:
    content = bytearray(saved(tmp_path / "a.bmp", COLOUR).read_bytes())
    struct.pack_into("<i", content, 18, 0)
    (tmp_path / "a.bmp").write_bytes(content)
    assert refusal(tmp_path / "a.bmp")
    for name, values in (("grey.tif", wide(GREY)), ("float.tif", (COLOUR / 255).astype(np.float32))):
        photometric = "rgb" if values.ndim == 3 else "minisblack"
        tifffile.imwrite(tmp_path / name, values, photometric=photometric)
        with tifffile.TiffFile(tmp_path / name) as tiff:
            place = tiff.pages[0].tags[256].valueoffset
        content = bytearray((tmp_path / name).read_bytes())
        content[place : place + 2] = b"\0\0"
        (tmp_path / name).write_bytes(content)
        assert "0 x 32 pixels" in refusal(tmp_path / name)
