"""The content and the size of files."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path

from aprilcli.errors import ArtifactError, InputError


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def size_of_file(path: Path) -> int:
    """Return a file's size in bytes. Raises ArtifactError for a pipe or device, which could block or never end."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ArtifactError(f"{path}: is not an ordinary file; choose another path")
    return status.st_size
