"""Open safetensors files, also on file systems whose files cannot be mapped into memory."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file to read its tensors one by one, on the CPU; yield what ``safe_open`` does.

    Where it cannot be mapped, as on some network drives, all of it is read into memory. Raises OSError or
    SafetensorError.
    """
    try:
        opened = safe_open(path, framework="pt", device="cpu")
    except OSError:  # if it has another reason, reading raises it
        yield _TensorsInMemory(path.read_bytes())
        return
    with opened as file:
        yield file


@contextmanager
def mappable(path: Path) -> Iterator[Path]:
    """Yield a path to the content of a safetensors file for a library that maps it: a copy where that is impossible.

    Raises OSError.
    """
    try:
        with safe_open(path, framework="pt"):
            is_mappable = True
    except OSError:
        is_mappable = False
    if is_mappable:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(path, Path(folder, path.name)))


@dataclass(frozen=True)
class _Slice:
    shape: list[int]
    dtype: str

    def get_shape(self) -> list[int]:
        return self.shape

    def get_dtype(self) -> str:
        return self.dtype


class _TensorsInMemory:
    """The part of ``safe_open``'s interface that this package uses."""

    def __init__(self, content: bytes) -> None:
        self._tensors = safetensors.torch.load(content)  # also checks the header
        self._header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])

    def keys(self) -> list[str]:
        return list(self._tensors)

    def metadata(self) -> dict[str, str] | None:
        metadata: dict[str, str] | None = self._header.get("__metadata__")
        return metadata

    def get_slice(self, name: str) -> _Slice:
        return _Slice(self._header[name]["shape"], self._header[name]["dtype"])

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._tensors[name]
