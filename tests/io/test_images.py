"""Pictures as cameras write them, and as nobody should: decoded right, or refused in one line."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from aprilcli.errors import InputError
from aprilcli.io.images import find_images, read_image, to_pixels

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
GRADIENT = np.linspace(0, 255, 48 * 32).reshape(32, 48).astype(np.uint8)
COLOUR = np.stack([GRADIENT, np.tile(np.linspace(255, 0, 48), (32, 1)).astype(np.uint8), 255 - GRADIENT], axis=-1)


def decoded(path: Path, **options: object) -> np.ndarray:
    return np.asarray(read_image(path, **options).rgb).astype(int)  # type: ignore[arg-type]


def saved(path: Path, array: np.ndarray, mode: str | None = None, **options: object) -> Path:
    picture = Image.fromarray(array)
    (picture.convert(mode) if mode else picture).save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.TIFF", "a.ppm", "a.webp"])
def test_lossless_colour(tmp_path: Path, name: str) -> None:
    options = {"lossless": True} if name.endswith("webp") else {}
    assert np.array_equal(decoded(saved(tmp_path / name, COLOUR, **options)), COLOUR)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg(tmp_path: Path, options: dict[str, object]) -> None:
    path = saved(tmp_path / "a.JPG", COLOUR, quality=98, **options)
    assert abs(decoded(path) - np.asarray(Image.open(path).convert("RGB")).astype(int)).max() == 0
    assert abs(decoded(path) - COLOUR).mean() < 6


def test_grey_jpeg_and_cmyk_jpeg(tmp_path: Path) -> None:
    grey = decoded(saved(tmp_path / "grey.jpg", GRADIENT, quality=98))
    assert abs(grey - GRADIENT[..., None]).mean() < 3
    cmyk = decoded(saved(tmp_path / "cmyk.jpg", COLOUR, "CMYK", quality=98))
    assert abs(cmyk - COLOUR).mean() < 12  # not inverted


@pytest.mark.parametrize("mode", ["1", "P", "L", "LA", "RGBA"])
def test_png_modes(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", COLOUR, mode)
    assert np.array_equal(decoded(path), np.asarray(Image.open(path).convert("RGB")).astype(int))


def test_alpha_is_laid_on_white_and_said(tmp_path: Path) -> None:
    clear = np.zeros((8, 8, 4), np.uint8)
    clear[:4, :, 3] = 255
    picture = read_image(saved(tmp_path / "a.png", clear))
    values = np.asarray(picture.rgb)
    assert values[:4].max() == 0
    assert values[4:].min() == 255
    assert picture.notes == ("transparent pictures: scored on white",)
    assert read_image(saved(tmp_path / "b.png", COLOUR, "RGBA")).notes == ()  # opaque: nothing was done


def test_sixteen_bit_grey_is_its_eight_bit_copy(tmp_path: Path) -> None:
    wide = GRADIENT.astype(np.uint16) * 257
    for name in ("a.png", "a.tif", "a.pgm"):
        Image.fromarray(wide).save(tmp_path / name)
        assert np.array_equal(decoded(tmp_path / name)[..., 0], GRADIENT), name
    tifffile.imwrite(tmp_path / "big.tiff", wide.astype(">u2"), byteorder=">")
    assert np.array_equal(decoded(tmp_path / "big.tiff")[..., 0], GRADIENT)


def test_twelve_bits_in_sixteen_need_a_range(tmp_path: Path) -> None:
    twelve = (GRADIENT.astype(int) * 4095 // 255).astype(np.uint16)
    Image.fromarray(twelve).save(tmp_path / "a.png")
    assert decoded(tmp_path / "a.png").max() < 20
    assert abs(decoded(tmp_path / "a.png", value_range=(0, 4095))[..., 0] - GRADIENT).max() <= 1


def test_sixteen_bit_colour_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", COLOUR.astype(np.uint16) * 257, photometric="rgb")
    assert np.array_equal(decoded(tmp_path / "a.tif"), COLOUR)


def test_float_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "unit.tif", (GRADIENT / 255).astype(np.float32))
    assert np.array_equal(decoded(tmp_path / "unit.tif")[..., 0], GRADIENT)
    tifffile.imwrite(tmp_path / "wide.tif", GRADIENT.astype(np.float32))
    with pytest.raises(InputError, match="--range LO,HI"):
        read_image(tmp_path / "wide.tif")
    assert np.array_equal(decoded(tmp_path / "wide.tif", value_range=(0, 255))[..., 0], GRADIENT)
    tifffile.imwrite(tmp_path / "nan.tif", np.full((4, 4), np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        read_image(tmp_path / "nan.tif")


def test_first_page_of_many_is_said(tmp_path: Path) -> None:
    pages = [Image.fromarray(COLOUR), Image.fromarray(255 - COLOUR)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    picture = read_image(tmp_path / "a.tif")
    assert np.array_equal(np.asarray(picture.rgb), COLOUR)
    assert "first page" in picture.notes[0]


def test_the_cameras_rotation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    Image.fromarray(COLOUR).save(tmp_path / "a.png", exif=exif)
    picture = read_image(tmp_path / "a.png")
    assert picture.size_hw == (48, 32)
    assert np.array_equal(np.asarray(picture.rgb), np.rot90(COLOUR, -1))


def test_a_colour_profile_is_applied_and_a_broken_one_said(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    same = decoded(saved(tmp_path / "srgb.png", COLOUR, icc_profile=srgb))
    assert abs(same - COLOUR).max() <= 1
    broken = read_image(saved(tmp_path / "broken.png", COLOUR, icc_profile=b"nonsense" * 20))
    assert np.array_equal(np.asarray(broken.rgb), COLOUR)
    assert "profile" in broken.notes[0]


def test_content_decides_over_the_name(tmp_path: Path) -> None:
    saved(tmp_path / "a.png", COLOUR)
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    assert np.array_equal(decoded(tmp_path / "a.jpg"), COLOUR)


@pytest.mark.parametrize("size_wh", [(1, 1), (20000, 30), (1, 3000)])
def test_odd_shapes_are_squashed(tmp_path: Path, size_wh: tuple[int, int]) -> None:
    Image.new("RGB", size_wh, (255, 0, 0)).save(tmp_path / "a.png")
    pixels = to_pixels(read_image(tmp_path / "a.png"), 28, MEAN, STD)
    assert pixels.shape == (3, 28, 28)
    assert pixels.dtype == np.float32
    np.testing.assert_allclose(pixels[0], 1, atol=1e-6)
    np.testing.assert_allclose(pixels[1:], -1, atol=1e-6)


def test_too_many_pixels_are_refused_before_decoding(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match=r"20000 x 20000 pixels.*--max-pixels"):
        read_image(tmp_path / "bomb.png")
    saved(tmp_path / "a.png", COLOUR)
    with pytest.raises(InputError, match="limit of 100"):
        read_image(tmp_path / "a.png", max_pixels=100)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0\0\0\0\0", b"%!PS-Adobe"]
)
def test_what_is_no_picture_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(tmp_path / "a.jpg")
    assert "a.jpg" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_image(tmp_path / "gone.png")


def encoded(file_format: str, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(COLOUR).save(stream, file_format, **options)
    return stream.getvalue()


WHOLE = {name: encoded(name) for name in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM")}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # a picture's own faults; the command line filters them too
@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    cut=st.floats(0, 1),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8),
)
def test_damaged_bytes_give_a_picture_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, cut: float, edits: list[tuple[float, int]]
) -> None:
    content = bytearray(WHOLE[name])
    for where, value in edits:
        content[int(where * min(len(content), 600))] = value
    path = tmp_path_factory.getbasetemp() / "damaged.jpg"
    path.write_bytes(content[: int(cut * len(content)) + 1])
    try:
        outcome = read_image(path, max_pixels=1_000_000).rgb.mode
    except InputError as error:
        outcome = str(error)
    assert outcome == "RGB" or (path.name in outcome and "\n" not in outcome)


def test_the_walk_is_sorted_by_relative_path(tmp_path: Path) -> None:
    names = ["b.png", "b/one.png", "b-1.png", "a/z/deep.JPG", "a.tif", "B.webp", "ü.bmp", "b!.png", "=cmd.pgm"]
    for name in [*names, "notes.txt", ".hidden.png", ".git/a.png", "b/.x/a.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    assert [found.relative for found in find_images(tmp_path)] == sorted(names)


def test_linked_folders_are_entered_only_when_asked_and_never_round_in_circles(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.png").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "loop").symlink_to(tmp_path)
    (tmp_path / "file.png").symlink_to(tmp_path / "real" / "a.png")
    assert [found.relative for found in find_images(tmp_path)] == ["file.png", "real/a.png"]
    followed = [found.relative for found in find_images(tmp_path, follow=True)]
    assert followed == ["file.png", "link/a.png", "real/a.png"]


def test_names_that_are_not_utf8_survive(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff\xfe.png"
    Path(os.fsdecode(raw)).write_bytes(b"")
    (found,) = find_images(tmp_path)
    assert os.fsencode(found.path) == raw


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list anything")
def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    (found,) = find_images(tmp_path)
    assert found.relative == "locked"
    assert "cannot be listed" in (found.error or "")
