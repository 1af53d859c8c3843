"""One picture in every form that a camera or a program may give it, as files' contents."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import tifffile
from PIL import Image, ImageCms

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
ORIENTATION = 0x0112


def encoded(file_format: str, array: np.ndarray, mode: str = "", **options: Any) -> bytes:
    """As Pillow writes it, converted to ``mode`` before."""
    stream = io.BytesIO()
    picture = Image.fromarray(array)
    (picture.convert(mode, palette=Image.Palette.ADAPTIVE) if mode else picture).save(stream, file_format, **options)
    return stream.getvalue()


def tiff(array: np.ndarray, **options: Any) -> bytes:
    """As tifffile writes it."""
    stream = io.BytesIO()
    tifffile.imwrite(stream, array, **options)
    return stream.getvalue()


def png(values: np.ndarray, interlaced: bool = False, transparent: tuple[int, ...] = ()) -> bytes:
    """Encode [H, W, C] uint8 or uint16 by hand: Pillow writes neither 16-bit colour nor interlaced ones.

    Rows are filtered in turn as none, difference and up.
    """
    height, width, channels = values.shape
    bits = 8 * values.dtype.itemsize

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    def filtered(part: np.ndarray) -> bytes:
        step = channels * bits // 8
        rows = part.astype(part.dtype.newbyteorder(">")).reshape(len(part), -1).view(np.uint8).astype(int)
        lines = []
        for index, row in enumerate(rows):
            before = [np.zeros_like(row), np.concatenate([np.zeros(step, int), row[:-step]]), rows[index - 1]]
            kind = index % 3
            lines.append(bytes([kind]) + ((row - before[kind]) % 256).astype(np.uint8).tobytes())
        return b"".join(lines)

    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = [values[top::down, left::right] for top, left, down, right in passes]
    colour_type = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if transparent:
        content += chunk(b"tRNS", struct.pack(f">{len(transparent)}H", *transparent))
    content += chunk(b"IDAT", zlib.compress(b"".join(filtered(part) for part in parts if part.size)))
    return content + chunk(b"IEND", b"")


def wide(values: np.ndarray) -> np.ndarray:
    """Sixteen-bit copy, with lower bytes that are not the upper ones."""
    lower = np.arange(values.size).reshape(values.shape) % 101 - 50
    return (values.astype(np.int64) * 257 + lower).clip(0, 65535).astype(np.uint16)


def swapped_profile() -> bytes:
    """Build a colour profile whose red and blue are exchanged, under a name of its own."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for old, new in ((b"rXYZ", b"????"), (b"bXYZ", b"rXYZ"), (b"????", b"bXYZ")):
        profile = profile.replace(old, new, 1)
    renamed = profile.replace("sRGB".encode("utf-16-be"), "swap".encode("utf-16-be"))
    assert renamed != profile
    return renamed


def bomb(content: bytes) -> bytes:
    """A PNG's content that declares 20,000 × 20,000 pixels."""
    header = content[12:16] + struct.pack(">II", 20000, 20000) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def every_form(colour: np.ndarray) -> dict[str, bytes]:
    """A picture [H, W, 3] uint8 in all forms below, by name; the first word is the usual extension."""
    grey = np.asarray(Image.fromarray(colour).convert("L"))
    return colour_forms(colour) | grey_forms(grey) | lossy_forms(colour) | bitmap_forms(grey)


def colour_forms(colour: np.ndarray) -> dict[str, bytes]:
    """A picture [H, W, 3] uint8 in forms that keep each pixel, by name; what is white in it is clear in some."""
    other, sixteen, float32 = 255 - colour, wide(colour), (colour / 255).astype(np.float32)
    alpha = np.where((colour == 255).all(axis=-1), 0, 255).astype(np.uint8)[..., None]
    clear = np.dstack([np.where(alpha == 0, 77, colour), alpha]).astype(np.uint8)
    turned, turn = np.rot90(colour, 1).copy(), Image.Exif()
    turn[ORIENTATION] = 6
    tag = [(ORIENTATION, "H", 1, 6, True)]
    return {
        "png": encoded("PNG", colour),
        "png alpha": encoded("PNG", clear),
        "png interlaced": png(colour, interlaced=True),
        "png turned": encoded("PNG", turned, exif=turn),
        "png animated": encoded("PNG", colour, save_all=True, append_images=[Image.fromarray(other)]),
        "png 16 bit": png(sixteen),
        "png 16 bit alpha, interlaced": png(np.dstack([sixteen, wide(alpha)]), interlaced=True),
        "bmp": encoded("BMP", colour),
        "bmp alpha": encoded("BMP", np.dstack([colour, np.full_like(alpha, 255)])),
        "webp lossless": encoded("WEBP", colour, lossless=True),
        "webp alpha": encoded("WEBP", clear, lossless=True, exact=True),
        "webp turned": encoded("WEBP", turned, lossless=True, exif=turn),
        "webp animated": encoded("WEBP", colour, save_all=True, append_images=[Image.fromarray(other)], lossless=True),
        "ppm": encoded("PPM", colour),
        "ppm text": b"P3 %d %d 255\n" % colour.shape[1::-1] + b" ".join(b"%d" % value for value in colour.flat),
        "ppm 16 bit": b"P6 %d %d 65535\n" % colour.shape[1::-1] + sixteen.astype(">u2").tobytes(),
        "tif": encoded("TIFF", colour),
        "tif lzw": encoded("TIFF", colour, compression="tiff_lzw"),
        "tif deflate, tiles": tiff(colour, photometric="rgb", compression="zlib", tile=(16, 16)),
        "tif turned": tiff(turned, photometric="rgb", extratags=tag),
        "tif pages": encoded("TIFF", colour, save_all=True, append_images=[Image.fromarray(other)]),
        "tif 16 bit": tiff(sixteen, photometric="rgb"),
        "tif 16 bit deflate": tiff(sixteen, photometric="rgb", compression="zlib", tile=(16, 16)),
        "tif 16 bit planes": tiff(np.moveaxis(sixteen, -1, 0), photometric="rgb", planarconfig="separate"),
        "tif float": tiff(float32, photometric="rgb", compression="zlib"),
    }


def grey_forms(grey: np.ndarray) -> dict[str, bytes]:
    """A picture [H, W] uint8 in grey forms that keep each pixel, by name."""
    sixteen, unit, size = wide(grey), grey / 255, grey.shape[::-1]
    return {
        "png grey": encoded("PNG", grey),
        "png grey and alpha": png(np.dstack([grey, np.full_like(grey, 255)])),
        "png grey palette": encoded("PNG", grey, "P"),
        "png grey 16 bit": encoded("PNG", sixteen),
        "png grey 16 bit interlaced": png(sixteen[..., None], interlaced=True),
        "bmp grey": encoded("BMP", grey),
        "pgm": encoded("PPM", grey),
        "pgm 12 bit": b"P5 %d %d 4095\n" % size + np.rint(unit * 4095).astype(">u2").tobytes(),
        "pgm 16 bit": b"P5 %d %d 65535\n" % size + sixteen.astype(">u2").tobytes(),
        "pfm": b"Pf\n%d %d\n-1.0\n" % size + unit[::-1].astype("<f4").tobytes(),
        "tif grey": encoded("TIFF", grey),
        "tif grey, white is zero": tiff(255 - grey, photometric="miniswhite"),
        "tif grey 16 bit": tiff(sixteen, photometric="minisblack", byteorder=">"),
        "tif grey bigtiff": tiff(65535 - sixteen, photometric="miniswhite", bigtiff=True),
        "tif two channels": tiff(np.dstack([sixteen, 65535 - sixteen]), photometric="minisblack", extrasamples=[0]),
        "tif grey float, swapped": tiff(unit.astype("f4"), photometric="minisblack", byteorder=">", compression="zlib"),
        "tif grey float": tiff(unit.astype(np.float32), photometric="minisblack"),
        "tif grey double": tiff(unit, photometric="minisblack", tile=(16, 16)),
    }


def lossy_forms(colour: np.ndarray) -> dict[str, bytes]:
    """A picture [H, W, 3] uint8 in forms that change its pixels a little, by name."""
    turn, profile = Image.Exif(), swapped_profile()
    turn[ORIENTATION] = 6
    return {
        "jpg": encoded("JPEG", colour, quality=95),
        "jpg progressive": encoded("JPEG", colour, quality=95, progressive=True),
        "jpg profile": encoded("JPEG", colour[..., ::-1].copy(), quality=95, subsampling=0, icc_profile=profile),
        "jpg turned": encoded("JPEG", np.rot90(colour, 1).copy(), quality=95, exif=turn),
        "jpg cmyk": encoded("JPEG", colour, "CMYK", quality=95),
        "jpg two views": encoded("MPO", colour, save_all=True, append_images=[Image.fromarray(colour)], quality=95),
        "png profile": encoded("PNG", colour[..., ::-1].copy(), icc_profile=profile),
        "png palette": encoded("PNG", colour, "P"),
        "bmp palette": encoded("BMP", colour, "P"),
        "bmp 5-6-5": _bmp_565(colour),
        "webp": encoded("WEBP", colour, quality=95),
        "tif jpeg": encoded("TIFF", colour, compression="jpeg", quality=95),
        "tif profile": encoded("TIFF", colour[..., ::-1].copy(), icc_profile=profile),
    }


def _bmp_565(colour: np.ndarray) -> bytes:
    height, width = colour.shape[:2]
    red, green, blue = (colour[::-1, :, channel].astype(np.uint16) for channel in range(3))
    pixels = np.zeros((height, width + width % 2), "<u2")  # rows of whole four bytes
    pixels[:, :width] = (red >> 3) << 11 | (green >> 2) << 5 | blue >> 3
    info = struct.pack("<IiiHHIIiiII3I", 40, width, height, 1, 16, 3, pixels.nbytes, 0, 0, 0, 0, 0xF800, 0x7E0, 0x1F)
    return b"BM" + struct.pack("<IHHI", 14 + len(info) + pixels.nbytes, 0, 0, 14 + len(info)) + info + pixels.tobytes()


def bitmap_forms(grey: np.ndarray) -> dict[str, bytes]:
    """A picture [H, W] uint8 as black and white only, by name."""
    return {
        "png 1 bit": encoded("PNG", grey, "1"),
        "bmp 1 bit": encoded("BMP", grey, "1"),
        "pbm": encoded("PPM", grey, "1"),
        "tif 1 bit": encoded("TIFF", grey, "1"),
        "tif fax": encoded("TIFF", grey, "1", compression="group4"),
    }
