"""Where a part's bank stands, and how it gets there and back."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aprilcli.core.memory_bank import KIND, MemoryBank, check_names
from aprilcli.errors import ArtifactError, InputError, OptionError
from aprilcli.io.artifacts import ArtifactHeader, read_artifact, write_artifact

SUFFIX = ".safetensors"
PART_NAME = re.compile(r"\w[\w.-]{0,99}")


def bank_path(part: str, banks: Path) -> Path:
    """Return where a bank to be read stands: ``part`` itself if it names a file, else where ``new_bank_path`` says."""
    return Path(part) if part.endswith(SUFFIX) else new_bank_path(part, banks)


def new_bank_path(part: str, banks: Path) -> Path:
    """Return where a part's bank belongs, ``banks/NAME.safetensors``.

    Raises OptionError for a name that could leave the folder or confuse a shell.
    """
    if not PART_NAME.fullmatch(part) or ".." in part:
        raise OptionError(f"--part {part!r}: a part's name becomes a file's; use letters, digits, '_', '-' and '.'")
    return banks / f"{part}{SUFFIX}"


def save_bank(bank: MemoryBank, path: Path) -> None:
    """Write a bank aside, then rename it: an interrupted write leaves the old one whole. Raises OutputError."""
    tensors, fields = bank.to_artifact()
    on_disk = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_artifact(path, KIND, on_disk, fields, created=bank.created)


def load_bank(path: Path) -> MemoryBank:
    """Read a bank back, its pieces checked against each other. Raises InputError or ArtifactError."""
    with suppress(OSError):  # a name too long, a folder without rights: the reader says which
        if not path.exists():
            raise InputError(f"{path}: there is no such bank; make one with: aprilcli enroll PHOTOS --part NAME")

    def check(header: ArtifactHeader) -> None:
        with _naming(path):
            check_names(header.shapes, header.fields)

    artifact = read_artifact(path, KIND, check)
    with _naming(path):
        return MemoryBank.from_artifact(
            artifact.tensors, artifact.fields, created=artifact.created, version=artifact.version
        )


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
