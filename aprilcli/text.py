"""Show paths, foreign text and library errors on one line of valid, printable text."""

from __future__ import annotations

from pathlib import Path


def printable(path: Path | str) -> str:
    r"""Show a path or foreign text on one line of valid text.

    Control characters and bytes that are not UTF-8 (surrogates, as ``os.fsdecode`` gives them) become ``\x..``.
    """
    return "".join(char if char.isprintable() else _escaped(char) for char in str(path))


def _escaped(char: str) -> str:
    byte = ord(char) - 0xDC00  # of a surrogate escape
    return f"\\x{byte:02x}" if 0x80 <= byte <= 0xFF else char.encode("unicode_escape").decode()


def quoted(text: str) -> str:
    """Show what a file says of itself on one short line, control characters escaped."""
    return ascii(text if len(text) <= 80 else text[:79] + "…")


def first_line(error: Exception) -> str:
    """Return the first line of what a library says, short and printable."""
    return printable((str(error).strip() or type(error).__name__).splitlines()[0])[:200]
