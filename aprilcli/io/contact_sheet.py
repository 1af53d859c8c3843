"""Contact sheets: small copies of a part's reference images with their names and scores, as one image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.atomic import written_aside
from aprilcli.io.images import DECODER_ERRORS, SourceImage
from aprilcli.text import printable

SIDE = 128  # pixels, the longer side of a thumbnail
QUALITY = 85  # of the JPEG of a thumbnail
FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}  # Pillow's names, by suffix
MOST = 1000  # thumbnails on a sheet: more could not be looked at
FEWEST_COLUMNS = 6
CELL_WIDTH, CELL_HEIGHT, GAP, LINE = 150, 176, 8, 16  # pixels
INK, GRAY, RED = "#202020", "#e4e4e4", "#d02020"
# Tried in this order after Pillow's own font, which covers Western European letters only.
FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "msyh.ttc", "arial.ttf")
UNKNOWN = "\uffff"  # no character, so its glyph is that of all that a font lacks


@dataclass(frozen=True)
class Entry:
    """A reference on a sheet.

    ``number``: its position among the references, from 1. ``thumbnail``: of ``make_thumbnail``, empty if there is
    none. ``score`` against the other references, None if it is not known. ``is_outlier``: marked in red.
    """

    number: int
    name: str
    thumbnail: bytes = field(repr=False)
    score: float | None = None
    is_outlier: bool = False


def make_thumbnail(image: SourceImage) -> bytes:
    """Return a small copy of a decoded image as a JPEG: the longer side has ``SIDE`` pixels, or fewer as the image."""
    scale = min(1.0, SIDE / max(image.rgb.size))
    width, height = (max(1, round(side * scale)) for side in image.rgb.size)
    small = image.rgb.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)
    small.info.clear()  # a comment of the original, for example
    content = BytesIO()
    small.save(content, "JPEG", quality=QUALITY)
    return content.getvalue()


def write_sheet(path: Path, title: str, entries: Sequence[Entry]) -> None:
    """Draw the thumbnails, the highest score first, and write them as ``FORMATS`` says for the suffix of ``path``.

    Of more than ``MOST`` entries, those with the highest scores are drawn.
    Raises OutputError, and ArtifactError for thumbnails that cannot be read.
    """
    by_score = sorted(entries, key=lambda entry: -math.inf if entry.score is None else entry.score, reverse=True)
    drawn = by_score[:MOST]
    if len(drawn) < len(entries):
        title += f" ({len(drawn)} shown)"
    sheet = draw_sheet(title, drawn)
    if path.suffix.lower() not in FORMATS:
        raise OutputError(f"{path}: a contact sheet is a JPEG or PNG; give a name with {' or '.join(FORMATS)}")
    with written_aside(path) as aside:
        sheet.save(aside, FORMATS[path.suffix.lower()])


def draw_sheet(title: str, entries: Sequence[Entry]) -> Image.Image:
    """Draw the entries row by row below the title, RGB. Raises ArtifactError for thumbnails that cannot be read."""
    columns = max(FEWEST_COLUMNS, math.isqrt(max(0, len(entries) - 1)) + 1)
    rows = math.ceil(len(entries) / columns)
    font = _choose_font(printable("".join([title, *(entry.name for entry in entries)])))
    top = 3 * GAP + LINE
    sheet = Image.new("RGB", (GAP + columns * (CELL_WIDTH + GAP), top + rows * (CELL_HEIGHT + GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, GAP), _fitted(title, font, sheet.width - 2 * GAP), INK, font)
    for position, entry in enumerate(entries):
        row, column = divmod(position, columns)
        _draw_entry(sheet, (GAP + column * (CELL_WIDTH + GAP), top + row * (CELL_HEIGHT + GAP)), entry, font)
    return sheet


def _draw_entry(sheet: Image.Image, corner: tuple[int, int], entry: Entry, font: ImageFont.FreeTypeFont) -> None:
    draw, (left, top) = ImageDraw.Draw(sheet), corner
    color = RED if entry.is_outlier else INK
    draw.rectangle((left, top, left + CELL_WIDTH - 1, top + SIDE + 7), GRAY, RED if entry.is_outlier else GRAY, 3)
    if entry.thumbnail:
        thumbnail = _read_thumbnail(entry)
        sheet.paste(thumbnail, (left + (CELL_WIDTH - thumbnail.width) // 2, top + 4 + (SIDE - thumbnail.height) // 2))
    else:
        draw.text((left + GAP, top + GAP), "no thumbnail", INK, font)
    score = "" if entry.score is None else f"  score {entry.score:.4f}"
    draw.text((left, top + SIDE + 12), _fitted(entry.name, font, CELL_WIDTH), color, font)
    differs = "  differs" if entry.is_outlier else ""
    draw.text((left, top + SIDE + 12 + LINE), f"{entry.number}{score}{differs}", color, font)


def _read_thumbnail(entry: Entry) -> Image.Image:
    """Decode a thumbnail of a file that may be damaged, or made to do harm."""
    try:
        with Image.open(BytesIO(entry.thumbnail), formats=("JPEG",)) as image:
            if max(image.size) > SIDE:
                raise ValueError(f"{image.width} x {image.height} pixels")
            return image.convert("RGB")
    except DECODER_ERRORS as error:
        raise ArtifactError(
            f"the thumbnail of {printable(entry.name)} cannot be read; enroll the part again"
        ) from error


def _choose_font(text: str) -> ImageFont.FreeTypeFont:
    """Return the font that lacks the fewest of the text's characters, the first of equals."""
    fonts = [ImageFont.load_default(12)]
    for name in FONTS:
        with suppress(OSError):  # not installed
            fonts.append(ImageFont.truetype(name, 12))
    return min(
        (font for font in fonts if isinstance(font, ImageFont.FreeTypeFont)), key=lambda f: len(_lacking(f, text))
    )


def _lacking(font: ImageFont.FreeTypeFont, text: str) -> set[str]:
    unknown = bytes(font.getmask(UNKNOWN))
    return {char for char in set(text) if not char.isspace() and bytes(font.getmask(char)) == unknown}


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the end of a text that fits into ``width`` pixels, with "?" for characters that the font lacks."""
    text = printable(text)
    lacking = _lacking(font, text)
    shown = "".join("?" if char in lacking else char for char in text)
    fitting = shown[-width:]
    while font.getlength(fitting if fitting == shown else f"…{fitting}") > width:
        fitting = fitting[1:]
    return fitting if fitting == shown else f"…{fitting}"
