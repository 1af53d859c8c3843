"""The fingerprint of a data set: `train` records it, `eval` compares it to find leakage."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from aprilcli.io.files import sha256_of_file


def relative_path(path: Path, root: Path) -> str:
    """Return ``path`` relative to the data set, with ``/``."""
    return Path(os.path.relpath(path, root)).as_posix()


def digest_line(path: Path, root: Path) -> str:
    """Return ``<relative path> NUL <SHA-256 of the content>``. Raises InputError if the file cannot be read."""
    return f"{relative_path(path, root)}\0{sha256_of_file(path)}"


def sha256_of_line(line: str) -> str:
    """Return the SHA-256 in a ``digest_line``."""
    return line.rpartition("\0")[2]


def data_fingerprint(lines: Iterable[str]) -> str:
    """Return the SHA-256, hexadecimal, over the sorted ``digest_line`` of all images and masks."""
    return hashlib.sha256("\n".join(sorted(lines)).encode("utf-8", "surrogateescape")).hexdigest()
