"""Which pages of a TIFF are its image: the first that is no preview, or three that hold a color each."""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import tifffile

from aprilcli.errors import InputError

MAX_PAGES = 100  # searched for an image among previews
REDUCED, MASK = 1, 4  # bits of the NewSubfileType tag
OLD_REDUCED = 2  # value of the SubfileType tag
DAMAGED_PAGE = (tifffile.TiffFileError, ValueError, TypeError, struct.error)


@dataclass(frozen=True)
class ImagePages:
    """The ``indexes`` of an image's pages: one, or those of red, green and blue; and whether there are other images."""

    indexes: tuple[int, ...] = (0,)
    has_more: bool = False


def find_pages(file: BinaryIO) -> ImagePages:
    """Find the pages of a TIFF's first image.

    Raises InputError if all pages are previews, and what tifffile raises if the first page is damaged.
    """
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        images: list[int] = []  # only as many as needed: a stack may have thousands
        is_damaged = False
        for index in range(MAX_PAGES):
            try:
                if not _is_preview(tiff.pages[index]):
                    images.append(index)
            except IndexError:
                break
            except DAMAGED_PAGE:  # of no importance after the image
                if not images:
                    raise
                is_damaged = True
                break
            if len(images) > 3:
                break
        if not images:
            raise InputError("only a preview of a camera raw file or of a larger image; save that as TIFF, PNG or JPEG")
        pages = [tiff.pages[index] for index in images]
        if len(pages) == 3 and not is_damaged and _channels(pages[0]) == 3 and len(set(map(_kind, pages))) == 1:
            return ImagePages(tuple(images))
        return ImagePages((images[0],), len(images) > 1 or is_damaged or _planes(pages[0]) > 1)


def _is_preview(page: Any) -> bool:
    """Return whether a page is a reduced copy of an image, which may be in its sub-pages, or its transparency mask."""
    if page.subifds and any(inner.imagewidth > page.imagewidth for inner in page.pages):
        return True
    kind, old_kind = page.tags.get(254), page.tags.get(255)
    if kind is not None:
        return bool(int(kind.value) & (REDUCED | MASK))
    return old_kind is not None and old_kind.value == OLD_REDUCED


def _kind(page: Any) -> object:
    """Return what three planes of a color image have in common; a value of its own for a page that is no plane."""
    is_gray = page.photometric in (0, 1) and page.samplesperpixel == 1 and page.imagedepth == 1
    return (page.imagewidth, page.imagelength, page.dtype, int(page.photometric)) if is_gray else page.index


def _channels(page: Any) -> int:
    """Return how many channels of one image the pages hold, by the file's own description; 0 if it is silent."""
    text: str = page.description
    if pixels := re.search(r"<(?:\w+:)?Pixels\s([^>]*)>", text):  # OME
        sizes = dict(re.findall(r'Size([CZT])="(\d{1,9})"', pixels[1]))
        return int(sizes.get("C", 0)) if sizes.get("Z", "1") == sizes.get("T", "1") == "1" else 0
    imagej = _imagej(text)
    if "channels" in imagej:
        return imagej["channels"] if imagej["channels"] == imagej.get("images") else 0
    shape, axes = _shaped(text)
    return shape[0] if axes == "CYX" and len(shape) == 3 else 0


def _planes(page: Any) -> int:
    """Return how many images a single page holds: some programs store a stack after one page's description."""
    shape, _ = _shaped(page.description)
    size = int(page.imagewidth * page.imagelength * page.imagedepth * page.samplesperpixel)
    metamorph = page.tags.get(33629)
    return max(
        int(page.imagedepth),
        _imagej(page.description).get("images", 1),
        math.prod(shape) // max(1, size),
        int(metamorph.count) if metamorph is not None else 1,
    )


def _imagej(text: str) -> dict[str, int]:
    """Return the whole numbers of ImageJ's description."""
    if not text.startswith(("ImageJ=", "SCIFIO=")):
        return {}
    return {name: int(value) for name, value in re.findall(r"^(\w+)=(\d{1,9})$", text, re.MULTILINE)}


def _shaped(text: str) -> tuple[tuple[int, ...], str]:
    """Return shape and axes of tifffile's description; empty if there is none."""
    try:
        metadata = json.loads(text)
        return tuple(map(int, metadata["shape"])), str(metadata.get("axes", ""))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return (), ""
