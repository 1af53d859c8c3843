"""Every kind of image file is decoded correctly or refused in one line."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from image_kinds import (
    CLEAR,
    COLOR,
    FADE,
    GRAY,
    ON_WHITE,
    ORIENTATION,
    bomb,
    decoded,
    encoded,
    heic,
    png,
    refusal,
    saved,
    set_tags,
    swapped_profile,
    wide,
    write_png,
)
from PIL import Image, ImageCms, PngImagePlugin
from safetensors.numpy import load_file

from aprilcli.errors import OptionError
from aprilcli.io.images import (
    MAX_SCANS,
    NOTE_EXIF,
    NOTE_HDR,
    NOTE_PAGES,
    NOTE_PROFILE,
    NOTE_TRANSPARENT,
    SourceImage,
    read_image,
    to_pixels,
)

GOLDEN = Path(__file__).parents[1] / "golden"
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


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


@pytest.mark.parametrize("value_range", [(1, 1), (2, 1), (0, float("inf")), (float("nan"), 1)])
def test_an_invalid_value_range_is_an_option_error(tmp_path: Path, value_range: tuple[float, float]) -> None:
    with pytest.raises(OptionError, match="value range"):
        read_image(saved(tmp_path / "a.png", COLOR), value_range=value_range)


def test_bitmaps_in_pnm(tmp_path: Path) -> None:
    (tmp_path / "a.pbm").write_bytes(b"P1\n3 2\n1 0 1\n0 1 0\n")
    assert decoded(tmp_path / "a.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]
    (tmp_path / "b.pbm").write_bytes(b"P4\n3 2\n" + bytes([0b10100000, 0b01000000]))
    assert decoded(tmp_path / "b.pbm")[..., 0].tolist() == [[0, 255, 0], [255, 0, 255]]


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


@pytest.mark.parametrize("name", ["a.gif", "a.avif"])
def test_the_first_frame_of_several_is_used_with_a_note(tmp_path: Path, name: str) -> None:
    frames = [Image.fromarray(COLOR), Image.fromarray(255 - COLOR)]
    options = {"quality": 100, "subsampling": "4:4:4"} if name.endswith("avif") else {}
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
    image = read_image(tmp_path / name)
    assert abs(np.asarray(image.rgb).astype(int) - COLOR).mean() < 8
    assert image.notes == (NOTE_PAGES,)
    frames[0].save(tmp_path / name)
    assert read_image(tmp_path / name).notes == ()


def test_the_main_image_of_a_heic_is_used(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heic(COLOR))
    assert np.array_equal(decoded(tmp_path / "a.heic"), COLOR)
    assert read_image(tmp_path / "a.heic").notes == ()
    (tmp_path / "a.heic").write_bytes(heic(255 - COLOR, COLOR, primary_index=1))
    image = read_image(tmp_path / "a.heic")
    assert np.array_equal(np.asarray(image.rgb), COLOR)
    assert image.notes == (NOTE_PAGES,)


@pytest.mark.parametrize("stored", [GRAY[..., None], CLEAR], ids=["gray", "alpha"])
def test_heic_of_other_channels(tmp_path: Path, stored: np.ndarray) -> None:
    (tmp_path / "a.heic").write_bytes(heic(stored))
    expected = stored if stored.shape[2] == 1 else ON_WHITE
    assert abs(decoded(tmp_path / "a.heic") - expected).max() <= 1


def test_heic_of_ten_bits_is_read_in_full(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(heic(wide(COLOR)))
    assert abs(decoded(tmp_path / "a.heic") - COLOR).max() <= 1
    (tmp_path / "a.heic").write_bytes(heic(wide(COLOR) >> 2))
    assert abs(decoded(tmp_path / "a.heic", value_range=(0, 255)) - COLOR).max() <= 4


def test_a_heic_without_its_package_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprilcli.io.images.is_heif_supported", lambda: False)
    (tmp_path / "a.heic").write_bytes(heic(COLOR))
    assert "a HEIC image; install the extra 'heif' (the package pillow-heif), or save it as JPEG" in refusal(
        tmp_path / "a.heic"
    )


def test_the_package_for_heic_is_imported_for_a_heic_only() -> None:
    program = "import sys, aprilcli.io.images; assert 'pillow_heif' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_an_hdr_image_gives_a_note(tmp_path: Path) -> None:
    for name, content in (("a.heic", heic(COLOR, transfer_characteristics=16)), ("b.avif", encoded("AVIF", COLOR))):
        content = content.replace(b"colrnclx\0\1\0\x0d", b"colrnclx\0\x09\0\x10")
        (tmp_path / name).write_bytes(content)
        assert NOTE_HDR in read_image(tmp_path / name).notes, name


def test_a_value_range_for_an_avif_of_ten_bits_is_refused(tmp_path: Path) -> None:
    content = bytearray(encoded("AVIF", COLOR, quality=100, subsampling="4:4:4"))
    (tmp_path / "a.avif").write_bytes(content)
    assert abs(decoded(tmp_path / "a.avif", value_range=(0, 1023)) - COLOR).mean() < 8
    content[content.index(b"av1C") + 6] |= 0x40
    channels = content.index(b"pixi") + 9
    content[channels : channels + 3] = bytes([10, 10, 10])
    (tmp_path / "a.avif").write_bytes(content)
    assert "a value range cannot be applied to an AVIF of more than 8 bits; save it as" in refusal(
        tmp_path / "a.avif", value_range=(0, 1023)
    )


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
    (tmp_path / "a.heic").write_bytes(heic(COLOR, exif=exif.tobytes()))
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
    for name in ("a.jpg", "a.avif"):
        saved(tmp_path / name, COLOR[..., 0], exif=exif.tobytes(), quality=98)
        assert abs(decoded(tmp_path / name)[..., 0] - expected[..., 0]).max() < 9


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
    expected = "20000 x 20000 pixels are more than the limit of 150000000; reduce the image or raise the limit of"
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


@pytest.mark.parametrize("before", [b"", b"!\xf9\4\x08\0\0\0\0", b"\0"], ids=["plain", "disposed of", "a stray byte"])
def test_the_first_frame_of_a_gif_is_checked_before_it_is_allocated(tmp_path: Path, before: bytes) -> None:
    canvas = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0x80, 0, 0) + bytes(6)
    (tmp_path / "a.gif").write_bytes(canvas + before + b"," + struct.pack("<4HBB", 1, 0, 60000, 60000, 0, 8))
    assert "60001 x 60000 pixels" in refusal(tmp_path / "a.gif")


@pytest.mark.parametrize("content", [heic(COLOR), encoded("AVIF", COLOR)], ids=["heic", "avif"])
def test_a_huge_heic_or_avif_is_refused_before_decoding(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert "48 x 32 pixels are more than the limit of 1535" in refusal(tmp_path / "a", max_pixels=1535)
    place = content.index(b"ispe") + 8
    (tmp_path / "a").write_bytes(content[:place] + struct.pack(">II", 16000, 16000) + content[place + 8 :])
    assert refusal(tmp_path / "a")


def test_a_tiff_of_huge_tiles_is_refused(tmp_path: Path) -> None:
    for name, values in (("8.tif", COLOR), ("f.tif", (COLOR / 255).astype(np.float32))):
        tifffile.imwrite(tmp_path / name, values, photometric="rgb", tile=(16, 16))
        set_tags(tmp_path / name, {322: 65520, 323: 65520})
        assert "65520 x 65520 pixels" in refusal(tmp_path / name)


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


@pytest.mark.parametrize("block", [2, 7, 100, 10_000])
def test_scans_are_counted_across_blocks_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr("aprilcli.io.images.BLOCK_BYTES", block)
    content = encoded("JPEG", GRAY, progressive=True)
    start = content.index(b"\xff\xda")
    header = content[start : start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")]
    for further, is_refused in ((0, False), (MAX_SCANS - content.count(b"\xff\xda"), False), (MAX_SCANS, True)):
        (tmp_path / "a.jpg").write_bytes(content[:start] + header * further + content[start:])
        if is_refused:
            assert f"more than {MAX_SCANS} scans" in refusal(tmp_path / "a.jpg")
        else:
            decoded(tmp_path / "a.jpg")


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
        (
            b"hello",
            "not an image, or not in a supported format (JPEG, PNG, TIFF, BMP, WebP, GIF, AVIF, HEIC, PGM, PPM)",
        ),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not in a supported format"),
        (b"GIF89a\x01\x00\x01\x00", "a damaged GIF"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "JPEG XL is not a supported format; save it as JPEG, PNG or TIFF"),
        (b"\xff\x0a\x7f\xff", "JPEG XL is not"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000 is not"),
        (b"8BPS\0\1", "Photoshop is not"),
        (bytes(128) + b"DICM", "DICOM is not"),
        (b"v/1\1", "OpenEXR is not"),
        (b"FUJIFILMCCD-RAW 0201", "camera raw is not"),
        (b"II*\0\x10\0\0\0CR\2\0" + bytes(40), "camera raw is not"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1", "camera raw is not"),
        (b"\0\0\0\x18ftypavif" + bytes(50), "a damaged AVIF"),
        (b"\0\0\0\x18ftypheic" + bytes(50), "a damaged HEIC image"),
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
