"""Projectors, banks and checkpoints on disk: safetensors with string metadata, checked when read.

The header's ``__metadata__`` holds ``format`` (``aprilcli.projector``, ``aprilcli.bank`` …), ``format_version``,
``version`` (of aprilcli), ``created`` (ISO 8601, UTC) and ``fields`` (a JSON object). Files are not trusted: reading
runs no code from a file and allocates no more than its size.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from aprilcli import __version__
from aprilcli.errors import ArtifactError, InputError, OutputError
from aprilcli.io.atomic import written_aside
from aprilcli.text import printable, quoted

FORMAT_VERSION = 1
_FORMAT_PREFIX = "aprilcli."
_MAX_HEADER_BYTES = 32 * 1024**2  # enough for the sources of 200,000 references
_MAX_TENSORS = 1024
_MAX_DIMENSIONS = 8
_MAX_DEPTH = 50  # of the JSON fields; ours need 4
_CHUNK = 1 << 22  # elements checked for NaN at a time
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

T = TypeVar("T")

_DTYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}


@dataclass(frozen=True)
class ArtifactHeader:
    """An artifact's metadata and tensor shapes, without the values.

    ``kind``: ``projector``, ``bank`` …; ``version``: of the aprilcli that wrote it; ``created``: ISO 8601, UTC;
    ``fields``: a JSON object specific to the kind; ``shapes`` and ``dtypes`` (safetensors' names, ``F16``) per tensor.
    """

    kind: str
    version: str
    created: str
    fields: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


@dataclass(frozen=True)
class Artifact(ArtifactHeader):
    """A whole artifact; ``tensors``: on the CPU, finite, in the dtypes of the file."""

    tensors: dict[str, torch.Tensor] = field(repr=False)


def write_artifact(
    path: Path,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    fields: Mapping[str, Any],
    *,
    created: str | None = None,
) -> None:
    """Write an artifact beside ``path``, then rename it; an existing file stays whole until then.

    ``fields`` must be JSON-ready. ``created`` is an ISO 8601 time, now by default; if it is given, equal input gives
    equal bytes. Raises OutputError if writing fails, ArtifactError for NaN or infinite values (nothing is written
    then), ValueError for unsupported input (an empty tensor, another dtype, NaN in ``fields``).
    """
    # safetensors' own writer creates files that only their owner can read, leaves its temporary file behind when
    # killed, and hides the OSError. The format is simple: the header's length, a JSON header and the values.
    # Largest elements first keep all values aligned.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT_PREFIX + kind,
            "format_version": str(FORMAT_VERSION),
            "version": __version__,
            "created": created if created is not None else datetime.now(UTC).isoformat(timespec="seconds"),
            "fields": json.dumps(fields, sort_keys=True, allow_nan=False),
        }
    }
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in _DTYPES or tensor.numel() == 0 or tensor.ndim > _MAX_DIMENSIONS:
            raise ValueError(f"an artifact cannot hold tensor {name}: {tensor.dtype}, shape {tuple(tensor.shape)}")
        if not _is_finite(tensor):
            raise ArtifactError(
                f"{path}: not written, tensor {quoted(name)} has NaN or infinite values; create it again"
            )
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MAX_HEADER_BYTES:
        raise OutputError(f"{path}: too much metadata for one {kind} ({len(encoded):,} bytes); use fewer sources")
    if not _is_utf8(path):
        raise OutputError(f"{printable(path)}: safetensors files need a path of valid UTF-8; choose another path")
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            values = tensors[name].detach().cpu().contiguous()
            # A tensor with one element counts as contiguous whatever its stride; view() needs stride 1.
            flat = values.as_strided((values.numel(),), (1,)).view(torch.uint8)
            file.write(flat.numpy().data)


def read_artifact(path: Path, kind: str, check: Callable[[ArtifactHeader], object] | None = None) -> Artifact:
    """Read an artifact of the given kind and check that all values are finite. Raises ArtifactError, one line.

    ``check`` gets the header before any tensor is allocated, and may raise.
    """
    with _opened(path) as file:
        header = _header(path, file)
        if header.kind != kind:
            raise ArtifactError(f"{path}: holds a {header.kind}, but a {kind} is needed; give a {kind} file")
        if check is not None:
            check(header)
        # Copies, not views of the mapped file: it may be truncated while this process runs.
        tensors = {name: file.get_tensor(name).clone() for name in header.shapes}
    for name, tensor in tensors.items():
        if not _is_finite(tensor):
            raise _damaged(path, f"holds NaN or infinite values in tensor {quoted(name)}")
    return Artifact(**vars(header), tensors=tensors)


def read_header(path: Path) -> ArtifactHeader:
    """Read the header of an artifact of any kind, without the values. Raises ArtifactError, one line."""
    with _opened(path) as file:
        return _header(path, file)


def parse(schema: type[T], value: object) -> T:
    """Build a dataclass from foreign JSON, checked against its annotations. Raises ValueError that names the field."""
    try:
        return TypeAdapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg'].removeprefix('Value error, ')}".removeprefix(": ")) from error


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal. Raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after checking its size and first bytes."""
    try:
        _check_start(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        raise _damaged(path, f"is not a valid safetensors file ({quoted(str(error))})") from error
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error


def _is_utf8(path: Path) -> bool:
    """Return whether a path is valid UTF-8; safetensors' reader opens no other paths."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def size_of_file(path: Path) -> int:
    """Return a file's size in bytes. Raises ArtifactError for a pipe or device, which could block."""
    status = path.stat()
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
        raise ArtifactError(f"{path}: is not an ordinary file; give one, not a pipe or device")
    return status.st_size


def _check_start(path: Path) -> None:
    if not _is_utf8(path):
        raise ArtifactError(f"{printable(path)}: safetensors files need a path of valid UTF-8; rename it")
    size = size_of_file(path)
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder; give the safetensors file itself")
    if size == 0:
        raise _damaged(path, "is empty")
    with path.open("rb") as file:
        start = file.read(9)
    header_size = int.from_bytes(start[:8], "little")
    if len(start) < 9 or header_size > min(size - 8, _MAX_HEADER_BYTES) or start[8:] != b"{":
        if start.startswith(_PICKLE_STARTS):
            raise ArtifactError(f"{path}: is a pickle, which could run code; give a safetensors file")
        raise _damaged(path, f"is truncated or not a safetensors file (it declares a header of {header_size:,} bytes)")


def _header(path: Path, file: Any) -> ArtifactHeader:
    metadata = file.metadata() or {}
    declared = metadata.get("format", "")
    if not re.fullmatch(re.escape(_FORMAT_PREFIX) + r"[a-z-]{1,40}", declared):
        raise ArtifactError(
            f"{path}: is not an aprilcli file (its format is {quoted(declared)}); give a file that aprilcli wrote"
        )
    try:
        format_version = int(metadata["format_version"])
        version, created = metadata["version"], metadata["created"]
        if format_version > FORMAT_VERSION:
            newer = quoted(metadata["format_version"])
            raise ArtifactError(
                f"{path}: was written by a newer aprilcli (format {newer}, this one reads {FORMAT_VERSION}); "
                "upgrade aprilcli"
            )
        if format_version < 1 or not re.fullmatch(r"[\w.+-]{1,40}", version):
            raise ValueError(f"format {format_version} of version {version}")
        datetime.fromisoformat(created)
        if not created.isprintable():  # fromisoformat accepts any character between date and time
            raise ValueError("control characters in the date")
        fields = json.loads(metadata["fields"], parse_constant=_refuse_constant)
        if not isinstance(fields, dict):
            raise TypeError("fields are not a JSON object")
        _check_depth(fields)
    except KeyError as error:
        raise _damaged(path, f"lacks {error.args[0]} in its metadata") from error
    except (TypeError, ValueError, RecursionError) as error:  # json.loads recurses
        raise _damaged(path, f"has unreadable metadata ({quoted(str(error))})") from error
    names = sorted(file.keys())
    if not 0 < len(names) <= _MAX_TENSORS:
        raise _damaged(path, f"holds {len(names)} tensors")
    slices = {name: file.get_slice(name) for name in names}
    shapes = {name: tuple(slices[name].get_shape()) for name in names}
    dtypes = {name: str(slices[name].get_dtype()) for name in names}
    for name in names:
        if dtypes[name] not in _DTYPES.values():
            raise _damaged(path, f"holds tensor {quoted(name)} of type {dtypes[name]}")
        if len(shapes[name]) > _MAX_DIMENSIONS or math.prod(shapes[name]) == 0:
            raise _damaged(path, f"holds tensor {quoted(name)} of shape {quoted(str(shapes[name]))}")
    return ArtifactHeader(declared.removeprefix(_FORMAT_PREFIX), version, created, fields, shapes, dtypes)


def _check_depth(value: Any, levels: int = _MAX_DEPTH) -> None:
    """Refuse JSON nested deeper than code may recurse, at the same depth on every Python. Raises ValueError."""
    if isinstance(value, dict | list):
        if levels == 0:
            raise ValueError("fields are nested too deep")
        for inner in value.values() if isinstance(value, dict) else value:
            _check_depth(inner, levels - 1)


def _is_finite(tensor: torch.Tensor) -> bool:
    """Return whether all values are finite; in chunks, as isfinite allocates tensors as large as its input."""
    values = tensor.detach().reshape(-1)
    chunks = (values[begin : begin + _CHUNK] for begin in range(0, values.numel(), _CHUNK))
    return not tensor.is_floating_point() or all(bool(torch.isfinite(chunk).all()) for chunk in chunks)


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: {what}; create or copy the file again")


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")
