"""Results that are computed once and kept in the cache folder, one small file for each, checked when it is read.

The cache only saves time: what is missing, damaged or made for other inputs counts as unknown, and a folder that cannot
be written is no error. ``APRILCLI_CACHE`` sets the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch

from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.artifacts import Schema, read_artifact, write_artifact

_TENSOR = "value"
_SETTLED_S = 2.0  # file systems round the time of a change to as much as this


@dataclass(frozen=True)
class _Fields:
    """``key``: what the value was computed from; ``sha256``: of the value's bytes."""

    key: dict[str, Any]
    sha256: str


def cache_folder() -> Path:
    """Return the folder for downloaded and computed files: ``APRILCLI_CACHE`` or the platform's cache folder.

    Raises OutputError where there is none.
    """
    try:
        return Path(os.environ.get("APRILCLI_CACHE") or platformdirs.user_cache_path("aprilcli", appauthor=False))
    except RuntimeError as error:
        raise OutputError("there is no home folder for the cache; set APRILCLI_CACHE to a folder") from error


def recall(kind: str, key: Mapping[str, Any]) -> torch.Tensor | None:
    """Return the tensor that was stored for this key, on the CPU; None if there is none that is intact.

    ``kind``: a name of lower-case letters, also the subfolder. ``key``: all that the value depends on, in JSON types.
    """
    try:
        artifact = read_artifact(_path(kind, key), Schema(kind, _Fields, None, "delete it"))
    except (ArtifactError, OutputError):
        return None
    value = artifact.tensors.get(_TENSOR)
    if value is None or artifact.content.key != key or artifact.content.sha256 != _sha256(value):
        return None
    return value


def remember(kind: str, key: Mapping[str, Any], value: torch.Tensor) -> None:
    """Store a tensor for ``recall``, in place of an older or damaged file; leave it out where that is impossible."""
    with suppress(OutputError):
        write_artifact(_path(kind, key), kind, {_TENSOR: value}, {"key": dict(key), "sha256": _sha256(value)})


def state_of_file(path: Path) -> dict[str, Any] | None:
    """Return what changes whenever a file's content does, in JSON types; None if it has just been changed.

    Another change may then leave the same times. Raises OSError.
    """
    status = path.stat()
    if time.time() - max(status.st_mtime, status.st_ctime) < _SETTLED_S:
        return None
    return {
        "path": os.fsdecode(path.resolve()),
        "inode": status.st_ino,
        "size": status.st_size,
        "modified_ns": status.st_mtime_ns,
        "changed_ns": status.st_ctime_ns,  # unlike the time above, no program can set it
    }


def _path(kind: str, key: Mapping[str, Any]) -> Path:
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return cache_folder() / kind / f"{name}.safetensors"


def _sha256(value: torch.Tensor) -> str:
    return hashlib.sha256(value.detach().cpu().contiguous().numpy().tobytes()).hexdigest()
