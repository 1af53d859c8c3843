"""Format paths, text from files and library errors as one line of printable text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def printable(path: Path | str) -> str:
    r"""Return a path or text from a file as one line of valid Unicode.

    Control characters and bytes that are not UTF-8 (surrogates, as ``os.fsdecode`` gives them) become ``\x..``.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in str(path))


def _escaped(char: str) -> str:
    byte = ord(char) - 0xDC00  # os.fsdecode turns byte 0xNN into U+DCNN
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()


def quoted(text: str) -> str:
    """Return text from a file in quotes, at most 80 characters, as ASCII with all others escaped."""
    return ascii(text if len(text) <= 80 else text[:79] + "…")


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, printable and at most 200 characters; its type if it has none."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])[:200]


def listed(names: Sequence[Path | str], limit: int, count: int | None = None) -> str:
    """Return the first ``limit`` names, printable, and how many more there are; of ``count`` in all if it is given."""
    more = (len(names) if count is None else count) - limit
    return ", ".join(map(printable, names[:limit])) + (f", and {more} more" if more > 0 else "")
