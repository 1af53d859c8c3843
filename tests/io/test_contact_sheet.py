"""Contact sheets: thumbnails of images, and how they are drawn."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.contact_sheet import FONTS, SIDE, Entry, draw_sheet, make_thumbnail, write_sheet
from aprilcli.io.images import SourceImage

BLUE, WHITE = (0, 0, 255), (255, 255, 255)


def thumbnail_of(color: tuple[int, int, int], size_wh: tuple[int, int] = (40, 30)) -> bytes:
    return make_thumbnail(SourceImage(Image.new("RGB", size_wh, color)))


def amount_of(sheet: Image.Image, color: tuple[int, int, int]) -> int:
    """Count the pixels close to a color."""
    return int((np.abs(np.asarray(sheet).astype(int) - color).max(axis=-1) < 12).sum())


@pytest.mark.parametrize(
    ("size_wh", "expected"),
    [((3000, 1000), (SIDE, 43)), ((1000, 3000), (43, SIDE)), ((40, 30), (40, 30)), ((5000, 1), (SIDE, 1))],
)
def test_a_thumbnail_is_a_small_jpeg_of_the_same_shape(size_wh: tuple[int, int], expected: tuple[int, int]) -> None:
    with Image.open(BytesIO(thumbnail_of(BLUE, size_wh))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", expected)
        assert amount_of(thumbnail.convert("RGB"), BLUE) == expected[0] * expected[1]


def test_equal_images_give_equal_thumbnails_without_the_comment_of_the_file() -> None:
    image = Image.new("RGB", (200, 100), BLUE)
    image.info["comment"] = b"secret"
    assert make_thumbnail(SourceImage(image)) == thumbnail_of(BLUE, (200, 100))


def test_the_highest_score_comes_first_and_outliers_are_red() -> None:
    gray, blue = thumbnail_of((90, 90, 90), (128, 128)), thumbnail_of(BLUE, (128, 128))
    entries = [Entry(1, "a.png", gray, 0.1), Entry(2, "b.png", blue, 0.9, is_outlier=True)]
    sheet = draw_sheet("bolt", sorted(entries, key=lambda entry: -(entry.score or 0)))
    assert amount_of(sheet.crop((0, 0, 160, sheet.height)), BLUE) > 10_000
    assert amount_of(sheet, (0xD0, 0x20, 0x20)) > 500
    assert amount_of(draw_sheet("bolt", entries[:1]), (0xD0, 0x20, 0x20)) == 0


@pytest.mark.parametrize("fonts", [FONTS, ()])
def test_names_in_any_script_are_drawn(fonts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprilcli.io.contact_sheet.FONTS", fonts)
    names = [
        "部品",
        "шайба",
        "größe",
        "مسمار",
        "หมุด",
        "👍🏽",
        "a\u0301",
        "\udcff",
        "new\nline",
        "\u200b",
        "",
        " ",
        "x" * 4000,
    ]
    entries = [Entry(number, name, b"") for number, name in enumerate(names, start=1)]
    for title in ("bolt", "部品 \udcff", "x" * 4000):
        assert draw_sheet(title, entries).size == draw_sheet("", entries).size
    for entry in entries[:4]:  # each has ink of its own
        assert draw_sheet("bolt", [entry]) != draw_sheet("bolt", [replace(entry, name="")])


def test_of_many_references_those_that_differ_most_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprilcli.io.contact_sheet.MOST", 3)
    gray, blue = thumbnail_of((90, 90, 90)), thumbnail_of(BLUE)
    write_sheet(tmp_path / "s.png", "bolt", [Entry(k, f"{k}.png", blue if k > 3 else gray, k) for k in range(7)])
    with Image.open(tmp_path / "s.png") as sheet:
        assert amount_of(sheet, BLUE) > 3 * 1000
        assert amount_of(sheet, (90, 90, 90)) < 1000  # edges of letters


def test_the_suffix_decides_the_format(tmp_path: Path) -> None:
    for name, expected in (("a.JPG", "JPEG"), ("a.jpeg", "JPEG"), ("a.png", "PNG")):
        write_sheet(tmp_path / name, "bolt", [Entry(1, "a.png", thumbnail_of(BLUE))])
        with Image.open(tmp_path / name) as sheet:
            assert sheet.format == expected
    with pytest.raises(OutputError, match=r"sheet\.gif"):
        write_sheet(tmp_path / "sheet.gif", "bolt", [])


def test_damaged_and_huge_thumbnails_are_refused() -> None:
    huge = BytesIO()
    Image.new("RGB", (SIDE + 1, 5)).save(huge, "JPEG")
    for content in (b"nothing", thumbnail_of(BLUE)[:-200], huge.getvalue()):
        with pytest.raises(ArtifactError, match=r"^the thumbnail of a\.png cannot be read; enroll the part again$"):
            draw_sheet("bolt", [Entry(1, "a.png", content)])
