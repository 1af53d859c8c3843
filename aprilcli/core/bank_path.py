"""The path of a part's bank. Imports no torch."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path

from aprilcli.errors import OptionError

SUFFIX = ".safetensors"
PART_NAME = re.compile(r"\w[\w.-]{0,99}")


def bank_path(part: str, banks: Path) -> Path:
    """Return the path of a bank to read: ``part`` itself if it names a file, else as ``new_bank_path``."""
    return Path(part) if part.endswith(SUFFIX) else new_bank_path(part, banks)


def new_bank_path(part: str, banks: Path) -> Path:
    """Return the path of a part's bank, ``banks/NAME.safetensors``.

    Raises OptionError for a name that could leave the folder or confuse a shell.
    """
    part = unicodedata.normalize("NFC", part)  # file systems and terminals write accents in two ways
    if not PART_NAME.fullmatch(part) or ".." in part:
        raise OptionError(f"part name {part!r}: it becomes a file name; use letters, digits, '_', '-' and '.'")
    return banks / f"{part}{SUFFIX}"
