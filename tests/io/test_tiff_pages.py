"""The pages of a TIFF that are its image: previews, stacks, and colors stored as pages."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from image_kinds import COLOR, GRAY, ORIENTATION, decoded, encoded, refusal, set_tags, tiff, wide
from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.images import NOTE_PAGES, read_image

PLANES = np.moveaxis(COLOR, -1, 0).copy()
STACK = np.stack([GRAY, GRAY[::-1], 255 - GRAY])


def write_pages(path: Path, *pages: tuple[np.ndarray, dict[str, Any]]) -> Path:
    with tifffile.TiffWriter(path) as writer:
        for values, options in pages:
            photometric = "rgb" if values.ndim == 3 else "minisblack"
            writer.write(values, photometric=photometric, metadata=None, **options)
    return path


def notes_of(path: Path) -> tuple[str, ...]:
    return read_image(path).notes


@pytest.mark.parametrize("values", [COLOR, wide(COLOR)], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize("kind", [{"subfiletype": 1}, {"extratags": [(255, "H", 1, 2, True)]}], ids=["new", "old"])
def test_a_preview_before_the_image_is_skipped(tmp_path: Path, values: np.ndarray, kind: dict[str, Any]) -> None:
    turn = {"extratags": [(ORIENTATION, "H", 1, 3, True)]}
    path = write_pages(tmp_path / "a.tif", (255 - values[::4, ::4], kind), (values, turn))
    assert np.array_equal(decoded(path), COLOR[::-1, ::-1])
    assert notes_of(path) == ()
    write_pages(path, (255 - values[::4, ::4], kind), (values, {}), (values, {}))
    assert notes_of(path) == (NOTE_PAGES,)
    assert "48 x 32 pixels are more than the limit of 1000" in refusal(path, max_pixels=1000)


@pytest.mark.parametrize("values", [COLOR, wide(COLOR)], ids=["8 bit", "16 bit"])
def test_a_preview_alone_is_refused(tmp_path: Path, values: np.ndarray) -> None:
    path = write_pages(tmp_path / "a.dng", (values, {"subfiletype": 1}))
    assert "only a preview of a camera raw file or of a larger image; save that as TIFF" in refusal(path)
    with tifffile.TiffWriter(path) as writer:
        writer.write(values, photometric="rgb", subfiletype=1, subifds=1, metadata=None)
        writer.write(wide(GRAY), photometric="cfa", metadata=None)
    assert "only a preview" in refusal(path)


@pytest.mark.parametrize("values", [COLOR, wide(COLOR)], ids=["8 bit", "16 bit"])
def test_a_thumbnail_after_the_image_is_no_page(tmp_path: Path, values: np.ndarray) -> None:
    path = write_pages(tmp_path / "a.tif", (values, {}), (values[::4, ::4], {"subfiletype": 1}))
    assert np.array_equal(decoded(path), COLOR)
    assert notes_of(path) == ()


def test_a_pyramid_is_one_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(COLOR, subifds=1, photometric="rgb", metadata=None)
        writer.write(COLOR[::2, ::2].copy(), subfiletype=1, photometric="rgb", metadata=None)
    assert np.array_equal(decoded(tmp_path / "a.tif"), COLOR)
    assert notes_of(tmp_path / "a.tif") == ()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_stack_in_a_single_page_gives_a_note(tmp_path: Path, dtype: type) -> None:
    stack = STACK if dtype is np.uint8 else wide(STACK)
    with tifffile.TiffWriter(tmp_path / "shaped.tif", shaped=True) as writer:
        writer.write(stack, photometric="minisblack", truncate=True)
    imagej = "ImageJ=1.53t\nimages=3\nslices=3\nloop=false\n"
    tifffile.imwrite(tmp_path / "imagej.tif", stack[0], photometric="minisblack", description=imagej, metadata=None)
    depth = {"photometric": "minisblack", "volumetric": True, "metadata": None}
    tifffile.imwrite(tmp_path / "depth.tif", stack, **depth)
    tifffile.imwrite(tmp_path / "depth z.tif", stack, compression="zlib", **depth)
    tags = [(33629, "2I", 3, (0,) * 6, True)]
    tifffile.imwrite(tmp_path / "metamorph.tif", stack[0], photometric="minisblack", metadata=None, extratags=tags)
    for path in sorted(tmp_path.iterdir()):
        with tifffile.TiffFile(path) as tiff_file:
            assert len(tiff_file.pages) == 1
        assert np.array_equal(decoded(path)[..., 0], GRAY), path.name
        assert notes_of(path) == (NOTE_PAGES,), path.name


@pytest.mark.parametrize("planes", [PLANES, wide(PLANES)], ids=["8 bit", "16 bit"])
@pytest.mark.parametrize(
    "options",
    [
        {"ome": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}, "compression": "zlib"},
        {"imagej": True, "metadata": {"axes": "CYX", "mode": "composite"}},
        {"metadata": {"axes": "CYX"}},
    ],
    ids=str,
)
def test_colors_stored_as_pages_are_put_together(tmp_path: Path, planes: np.ndarray, options: dict[str, Any]) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(planes, photometric="minisblack", **options))
    assert np.array_equal(decoded(tmp_path / "a.tif"), COLOR)
    assert notes_of(tmp_path / "a.tif") == ()


@pytest.mark.parametrize(
    ("pages", "options"),
    [
        (PLANES[:2], {"ome": True, "metadata": {"axes": "CYX"}}),
        (np.concatenate([PLANES, PLANES[:1]]), {"ome": True, "metadata": {"axes": "CYX"}}),
        (PLANES, {"ome": True, "metadata": {"axes": "ZYX"}}),
        (PLANES, {"imagej": True, "metadata": {"axes": "ZYX"}}),
        (PLANES, {"metadata": {"axes": "ZYX"}}),
        (PLANES, {"metadata": None}),
        (np.stack([PLANES, PLANES]), {"ome": True, "metadata": {"axes": "ZCYX"}}),
    ],
    ids=str,
)
def test_other_pages_give_a_note(tmp_path: Path, pages: np.ndarray, options: dict[str, Any]) -> None:
    (tmp_path / "a.tif").write_bytes(tiff(pages, photometric="minisblack", **options))
    assert np.array_equal(decoded(tmp_path / "a.tif")[..., 0], COLOR[..., 0])
    assert notes_of(tmp_path / "a.tif") == (NOTE_PAGES,)


def test_pages_of_different_sizes_are_not_colors(tmp_path: Path) -> None:
    stream = io.BytesIO(tiff(PLANES, photometric="minisblack", metadata={"axes": "CYX"}))
    with tifffile.TiffFile(stream) as tiff_file:
        offset = tiff_file.pages[1].tags[257].valueoffset
    content = bytearray(stream.getvalue())
    content[offset] = 16
    (tmp_path / "a.tif").write_bytes(content)
    assert notes_of(tmp_path / "a.tif") == (NOTE_PAGES,)


def test_a_stack_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    values = wide(STACK)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="minisblack", volumetric=True, metadata=None)
    set_tags(tmp_path / "a.tif", {32997: 2**30})
    assert "missing" in refusal(tmp_path / "a.tif")


def test_pages_of_pillow_give_a_note(tmp_path: Path) -> None:
    content = encoded("TIFF", COLOR, save_all=True, append_images=[Image.fromarray(COLOR)])
    (tmp_path / "a.tif").write_bytes(content)
    assert notes_of(tmp_path / "a.tif") == (NOTE_PAGES,)


def test_a_thumbnail_before_its_image_in_a_sub_page_is_no_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        tiff.write(pixels[::4, ::4].copy(), subifds=1, photometric="rgb")
        tiff.write(pixels, photometric="rgb")
    with pytest.raises(InputError, match="only a preview"):
        read_image(tmp_path / "a.tif")
