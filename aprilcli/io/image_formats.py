"""Which files are images: by extension, or by their first bytes, whatever their name."""

from __future__ import annotations

import os

EXTENSIONS = frozenset(
    {b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".tif", b".tiff", b".bmp", b".webp", b".gif", b".avif"}
    | {b".pbm", b".pgm", b".ppm", b".pnm", b".pfm", b".heic", b".heif", b".hif"}
    # Not read, but images: they get a row that says so.
    | {b".jxl", b".jp2", b".j2k", b".tga", b".psd", b".xcf", b".dds", b".exr", b".pcx", b".sgi"}
    | {b".dng", b".cr2", b".cr3", b".nef", b".arw", b".orf", b".rw2", b".raf", b".srw", b".pef"}
)
HEAD = 132  # bytes of a file that ``format_of`` needs
_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"\xff\x0a": "JPEG XL",
    b"\0\0\0\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"II\xbc\x01": "JPEG XR",
    b"8BPS": "Photoshop",
    b"gimp xcf": "GIMP",
    b"DDS ": "DDS",
    b"\x0a\x05\x01\x08": "PCX",
    b"\x01\xda": "SGI",
    b"v/1\x01": "OpenEXR",
    b"#?RADIANCE": "Radiance",
    b"SIMPLE  =": "FITS",
    b"qoif": "QOI",
    b"FUJIFILMCCD-RAW": "camera raw",
    b"IIU\0": "camera raw",
    b"IIRO": "camera raw",
    b"FOVb": "camera raw",
}
_BRANDS = {  # of an ISO media file, after "ftyp"
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "HEIC"),
    **dict.fromkeys((b"mif1", b"mif2", b"msf1", b"miaf"), "HEIC"),  # or an AVIF, which Pillow then reads
    b"crx ": "camera raw",
}
_PNM = (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7", b"PF", b"Pf")


def has_image_extension(name: str | bytes) -> bool:
    """Return whether a file name has an image's extension, in any case."""
    name = os.fsencode(name)
    return name[name.rfind(b".") :].lower() in EXTENSIONS


def format_of(head: bytes) -> str | None:
    """Return the name of the image format that a file's first ``HEAD`` bytes show; None for other files."""
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and head[6:10] == bytes(4) and head[15:18] == bytes(3):  # reserved, and the header's size
        return "BMP"
    if head[:2] in _PNM and head[2:3].isspace():
        return "PNM"
    if head[128:132] == b"DICM":
        return "DICOM"
    if head[:4] in (b"II*\0", b"MM\0*") and head[8:10] == b"CR":  # a TIFF otherwise
        return "camera raw"
    return next((name for signature, name in _SIGNATURES.items() if head.startswith(signature)), None)
