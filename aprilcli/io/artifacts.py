"""Projectors, banks and checkpoints on disk: safetensors files whose metadata and tensors follow a declared schema.

The header's ``__metadata__`` holds ``format`` (``aprilcli.projector``, ``aprilcli.bank`` …), ``format_version``,
``version`` (of aprilcli), ``created`` (ISO 8601, UTC) and ``fields`` (a JSON object). Files are untrusted: no code in
them is run, and reading allocates no more memory than a file is large.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import torch
from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError

from aprilcli import __version__
from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.atomic import written_aside
from aprilcli.io.files import size_of_file
from aprilcli.io.tensor_files import open_tensors
from aprilcli.text import printable, quoted

T = TypeVar("T")

FORMAT_VERSION = "1"
UNDATED = "1970-01-01T00:00:00+00:00"  # of artifacts that follow from their inputs alone
FLOATS = ("F32", "F16", "BF16")  # safetensors' names
_FORMAT = re.compile("aprilcli[.]([a-z-]{1,40})")
_MAX_HEADER_BYTES = 32 * 1024**2  # enough for the paths and hashes of 200,000 references
_MAX_TENSORS = 1024
_MAX_DIMENSIONS = 8
_MAX_DEPTH = 32  # of nested JSON; a fixed limit, because Python's own depends on its version
PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_Dtype = Literal["F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"]
DTYPES: dict[torch.dtype, _Dtype] = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
}
_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)  # making one takes longer than parsing
_Shape = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(max_length=_MAX_DIMENSIONS)]


@dataclass(frozen=True)
class ArtifactHeader:
    """An artifact's metadata, without its values.

    ``kind``: ``projector``, ``bank`` …; ``version``: of the aprilcli that wrote it; ``created``: ISO 8601, UTC;
    ``fields``: a JSON object whose content depends on the kind; ``shapes`` and ``dtypes`` (safetensors' names, such as
    ``F16``) per tensor.
    """

    kind: str
    version: Annotated[str, Field(pattern=r"^[\w.+-]{1,40}$")]
    created: Annotated[str, Field(pattern="^[0-9T:.+Z-]{10,40}$")]
    fields: Annotated[dict[str, Any], BeforeValidator(_parse_fields)]
    shapes: Annotated[dict[str, _Shape], Field(min_length=1, max_length=_MAX_TENSORS)]
    dtypes: dict[str, _Dtype]


@dataclass(frozen=True)
class Artifact(ArtifactHeader, Generic[T]):
    """A whole artifact. ``content``: ``fields``, parsed; ``tensors``: on the CPU, in the file's dtypes, finite."""

    content: T
    tensors: dict[str, torch.Tensor] = field(repr=False)


class TensorSpec(NamedTuple):
    """What a tensor may be: its shape (None: any size), dtypes (safetensors' names) and limits of its values."""

    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...] = FLOATS
    low: float = -math.inf
    high: float = math.inf
    optional: bool = False


@dataclass(frozen=True)
class Schema(Generic[T]):
    """What an artifact of one kind holds.

    ``fields``: the type that its JSON fields must parse to; ``tensors``: from parsed fields to all its tensors (None:
    any); ``remedy``: what a user should do about a file that does not follow the schema.
    """

    kind: str
    fields: type[T]
    tensors: Callable[[T], Mapping[str, TensorSpec]] | None
    remedy: str


def write_artifact(
    path: Path,
    kind: str,
    tensors: Mapping[str, torch.Tensor],
    fields: Mapping[str, Any],
    *,
    created: str = UNDATED,
) -> None:
    """Write an artifact to a temporary file, then rename it: a file already at ``path`` stays intact until then.

    ``fields`` must be JSON-ready; ``created`` is an ISO 8601 time. Equal input gives equal bytes. Raises OutputError if
    the file cannot be written, ArtifactError for NaN or infinite values (nothing is written then), ValueError for input
    that no artifact can hold (an empty tensor, another dtype, NaN in ``fields``).
    """
    # Not safetensors' own writer: it creates files that only their owner can read, leaves its temporary file behind
    # when killed, hides the error number, and writes several metadata keys in random order.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # largest first: values are aligned
    header: dict[str, Any] = {
        "__metadata__": {
            "format": f"aprilcli.{kind}",
            "format_version": FORMAT_VERSION,
            "version": __version__,
            "created": created,
            "fields": json.dumps(fields, sort_keys=True, allow_nan=False),
        }
    }
    end = 0
    for name in names:
        tensor = tensors[name]
        if tensor.dtype not in DTYPES or tensor.numel() == 0 or tensor.ndim > _MAX_DIMENSIONS:
            raise ValueError(f"an artifact cannot hold tensor {name}: {tensor.dtype}, shape {tuple(tensor.shape)}")
        try:
            _check_values(name, tensor)
        except ValueError as error:
            raise ArtifactError(f"{path}: not written ({error}); check the input and run again") from error
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    if len(encoded) > _MAX_HEADER_BYTES:
        raise OutputError(f"{path}: too much metadata for one {kind} ({len(encoded):,} bytes); use fewer sources")
    if not _is_utf8(path):
        raise OutputError(f"{printable(path)}: safetensors files need a path in UTF-8; choose another path")
    with written_aside(path) as aside, aside.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little"))
        file.write(encoded)
        for name in names:
            values = tensors[name].detach().cpu().contiguous()
            # as_strided, because a tensor of one element counts as contiguous with any stride.
            flat = values.as_strided((values.numel(),), (1,)).view(torch.uint8)
            file.write(flat.numpy().data)


def read_artifact(path: Path, schema: Schema[T]) -> Artifact[T]:
    """Read an artifact that follows a schema; fields, shapes and dtypes are checked before any values are read.

    Raises ArtifactError, one line.
    """
    with _opened(path) as file:
        header = _header(path, file)
        if header.kind != schema.kind:
            raise ArtifactError(f"{path}: is a {header.kind}, not a {schema.kind}; give the path of a {schema.kind}")
        try:
            content = parse(schema.fields, header.fields)
            specs = {} if schema.tensors is None else schema.tensors(content)
            if schema.tensors is not None:
                _check_tensors(header, specs)
            # A copy, not a view of the mapped file, which another process may replace or truncate.
            tensors = {name: file.get_tensor(name).clone() for name in header.shapes}
            for name, tensor in tensors.items():
                _check_values(name, tensor, specs.get(name))
        except ValueError as error:
            raise ArtifactError(f"{path}: not a valid {schema.kind} ({error}); {schema.remedy}") from error
    return Artifact(**vars(header), content=content, tensors=tensors)


def read_header(path: Path) -> ArtifactHeader:
    """Read the metadata of an artifact of any kind. Raises ArtifactError, one line."""
    with _opened(path) as file:
        return _header(path, file)


def parse(schema: type[T], value: object, name: str = "") -> T:
    """Convert foreign JSON, called ``name``, to a type, checked as its annotations declare (lists become tuples).

    Raises ValueError, one short line that names the first wrong field.
    """
    try:
        parsed: T = _adapter(schema).validate_python(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, [*filter(None, [name]), *first["loc"]]))[:80]
        found = first["input"]
        got = f", got {quoted(str(found))}" if isinstance(found, str | int | float | None) else ""
        raise ValueError(printable(f"{where}: {first['msg'].removeprefix('Value error, ')[:100]}{got}")) from error
    return parsed


@contextmanager
def as_read_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body, which only reads ``path``, into an ArtifactError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ArtifactError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after a check of its size and first bytes."""
    try:
        with as_read_errors(path):
            _check_start(path)
            with open_tensors(path) as file:
                yield file
    except SafetensorError as error:
        raise _damaged(path, f"not a valid safetensors file: {quoted(str(error))}") from error


def _check_start(path: Path) -> None:
    if not _is_utf8(path):
        raise ArtifactError(f"{printable(path)}: safetensors files need a path in UTF-8; rename it")
    size = size_of_file(path)
    if path.is_dir():
        raise ArtifactError(f"{path}: is a folder; give the path of the safetensors file")
    if size == 0:
        raise _damaged(path, "it is empty")
    with path.open("rb") as file:
        start = file.read(9)
    header_size = int.from_bytes(start[:8], "little")
    if len(start) < 9 or header_size > min(size - 8, _MAX_HEADER_BYTES) or start[8:] != b"{":
        if start.startswith(PICKLE_STARTS):
            raise ArtifactError(f"{path}: is a pickle, which could run code; give the path of a safetensors file")
        raise _damaged(path, f"truncated or not a safetensors file: it declares a header of {header_size:,} bytes")


def _header(path: Path, file: Any) -> ArtifactHeader:
    metadata = file.metadata() or {}
    declared = _FORMAT.fullmatch(metadata.get("format", ""))
    if declared is None:
        found = quoted(metadata.get("format", ""))
        raise ArtifactError(f"{path}: is not an aprilcli file (its format is {found}); give a file that aprilcli wrote")
    slices = {name: file.get_slice(name) for name in sorted(file.keys())}
    shapes = {name: tuple(values.get_shape()) for name, values in slices.items()}
    dtypes = {name: str(values.get_dtype()) for name, values in slices.items()}
    if (version := metadata.get("format_version", "")) != FORMAT_VERSION:
        raise ArtifactError(
            f"{path}: has format version {quoted(version)}, this aprilcli reads {FORMAT_VERSION}; "
            "upgrade aprilcli or make the file again"
        )
    try:
        return parse(ArtifactHeader, {**metadata, "kind": declared[1], "shapes": shapes, "dtypes": dtypes})
    except ValueError as error:
        raise _damaged(path, str(error)) from error


def _parse_fields(text: str) -> object:
    """Read the metadata's JSON. Not with pydantic: it refuses the surrogates that ``os.fsdecode`` puts in paths."""
    try:
        fields = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [fields]
    for _ in range(_MAX_DEPTH):
        containers = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for values in containers for item in values if isinstance(item, dict | list)]
    if level:
        raise ValueError("nested too deeply")
    return fields


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _check_tensors(header: ArtifactHeader, specs: Mapping[str, TensorSpec]) -> None:
    """Compare names, shapes and dtypes with what a schema allows. Raises ValueError."""
    for name in sorted(header.shapes.keys() | specs.keys()):
        shape, spec = header.shapes.get(name), specs.get(name)
        if spec is None:
            raise ValueError(f"tensor {quoted(name)} does not belong to it")
        if shape is not None:
            sizes = zip_longest(shape, spec.shape, fillvalue=0)  # no size is 0
            fits = all(size == wanted or (wanted is None and size) for size, wanted in sizes)
            if not fits or header.dtypes[name] not in spec.dtypes:
                wanted = f"{' or '.join(spec.dtypes)} {spec.shape}".replace("None", "any")
                raise ValueError(f"tensor {name} is {header.dtypes[name]} {shape}, not {wanted}")
        elif not spec.optional:
            raise ValueError(f"tensor {name} is missing")


def _check_values(name: str, tensor: torch.Tensor, spec: TensorSpec | None = None) -> None:
    """Refuse values that are not finite, or outside the limits of ``spec``. Raises ValueError."""
    low, high = (float(value) for value in torch.aminmax(tensor.detach()))  # NaN if any value is
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"tensor {quoted(name)} has NaN or infinite values")
    if spec is not None and not spec.low <= low <= high <= spec.high:
        raise ValueError(f"tensor {name} has values outside {spec.low:g} to {spec.high:g}")


def _is_utf8(path: Path) -> bool:
    """Whether safetensors can open a path: it only takes valid UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _damaged(path: Path, reason: str) -> ArtifactError:
    return ArtifactError(f"{path}: is damaged or not written by aprilcli ({reason}); make it again or copy it again")
