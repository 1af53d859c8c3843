"""The projectors the authors of APRIL-GAN published: fetched, verified, kept as safetensors.

They stand in github.com/ByChelsea/VAND-APRIL-GAN under ``exps/pretrained/`` as PyTorch files. A download stays in
memory until its git blob id agrees; only then is it read, without running pickled code, and kept in the cache folder.
``APRILCLI_CACHE`` names another cache folder, ``APRILCLI_PROJECTOR_URL`` a mirror (the folder that holds the files).
"""

from __future__ import annotations

import http.client
import io
import os
import pickle
import struct
import time
import urllib.error
import urllib.request
import warnings
import zipfile
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path
from typing import IO

import platformdirs
import torch
from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from aprilcli import __version__
from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.artifacts import read_artifact, size_of_file, write_artifact
from aprilcli.io.atomic import output_errors, remove_leftovers

BASE_URL = "https://github.com/ByChelsea/VAND-APRIL-GAN/raw/f13b8a634e04f9fde8fa03db125b25af5695d8e1/exps/pretrained"

_KIND = "published-projector"
_TIMEOUT_S = 10.0  # without an answer: at connecting, and at each read
_DEADLINE_S = 600.0  # for the whole download
_MAX_BYTES = 64 * 1024**2  # the published files have about 12 MB
_PIECE = 1 << 16  # bytes read at a time
# What torch.load, given bytes of anybody's making, has for "no".
_UNREADABLE = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    struct.error,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class PublishedProjector:
    """A file of the authors: its name below the base URL, and the git blob id of its content."""

    file_name: str
    blob_id: str


PUBLISHED = {
    "visa": PublishedProjector("visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68"),
    "mvtec": PublishedProjector("mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f"),
}


def fetch_projector(name: str, *, progress: bool = False) -> dict[str, torch.Tensor]:
    """Return a published projector, from the cache folder or downloaded into it.

    ``name``: a key of ``PUBLISHED``. ``progress``: draw a bar on stderr if that is a terminal.
    Returns ``fc.{i}.weight`` [C, Cv] and ``fc.{i}.bias`` [C], float32.
    Of two processes at once the second waits and finds the file. Raises ArtifactError where it cannot be had, within
    seconds if there is no network; OutputError where the cache folder cannot be written.
    """
    wanted = PUBLISHED[name]
    path = cache_folder() / "projectors" / f"{name}.safetensors"
    tensors = _cached(path, wanted)
    if tensors is None:
        try:
            with output_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                with FileLock(path.parent / ".lock", timeout=_DEADLINE_S):  # its Timeout is an OSError
                    tensors = _cached(path, wanted) or _fetch_into(path, name, wanted, progress)
        except OutputError as error:
            raise OutputError(f"{error}; APRILCLI_CACHE names the cache folder") from error
    return tensors


def read_authors_projector(path: Path) -> dict[str, torch.Tensor]:
    """Read a projector file as the authors' program saves it, without running code pickled in it.

    Returns ``fc.{i}.weight`` [C, Cv] and ``fc.{i}.bias`` [C], float32. Raises ArtifactError, one line.
    """
    try:
        size = size_of_file(path)
        with path.open("rb") as file:
            return _read_authors_file(file, size, str(path))
    except OSError as error:
        raise ArtifactError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and your rights to it"
        ) from error


def cache_folder() -> Path:
    """Return the folder for what can be fetched again: ``APRILCLI_CACHE``, or the platform's own."""
    return Path(os.environ.get("APRILCLI_CACHE") or platformdirs.user_cache_path("aprilcli", appauthor=False))


def git_blob_id(content: bytes) -> str:
    """Return the id git gives a file's content: SHA-1 over ``blob <size>\\0`` + content, hexadecimal."""
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _cached(path: Path, wanted: PublishedProjector) -> dict[str, torch.Tensor] | None:
    """Read the cache's file; None where there is none, or one that is damaged or of another content."""
    try:
        artifact = read_artifact(path, _KIND)
    except ArtifactError:
        return None
    return artifact.tensors if artifact.fields.get("blob_id") == wanted.blob_id else None


def _fetch_into(path: Path, name: str, wanted: PublishedProjector, progress: bool) -> dict[str, torch.Tensor]:
    remove_leftovers(path.parent)  # of a process killed while writing; the lock says that none is writing now
    url = f"{(os.environ.get('APRILCLI_PROJECTOR_URL') or BASE_URL).rstrip('/')}/{wanted.file_name}"
    try:
        content = _download(url, name, progress)
        found = git_blob_id(content)
        if found != wanted.blob_id:
            raise ValueError(f"its content is another one: git blob {found[:12]}, not {wanted.blob_id[:12]}")
    except urllib.error.HTTPError as error:
        error.close()
        raise _unavailable(url, wanted, f"HTTP {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise _unavailable(url, wanted, " ".join(reason.split())) from error
    tensors = _read_authors_file(io.BytesIO(content), len(content), url)
    write_artifact(path, _KIND, tensors, {"name": name, "url": url, "blob_id": wanted.blob_id})
    return tensors


def _download(url: str, name: str, progress: bool) -> bytes:
    """Read a URL into memory. Raises OSError, HTTPException or ValueError: too large, cut short, too slow."""
    content = bytearray()
    console = Console(stderr=True)
    columns = (TextColumn(f"projector {name}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not (progress and console.is_terminal))
    deadline = time.monotonic() + _DEADLINE_S
    request = urllib.request.Request(url, headers={"User-Agent": f"aprilcli/{__version__}"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as response, bar:
        declared = response.headers.get("Content-Length", "")
        size = int(declared) if declared.isdecimal() else None
        task = bar.add_task("", total=size)
        while piece := response.read1(_PIECE):
            content += piece
            bar.update(task, completed=len(content))
            if max(size or 0, len(content)) > _MAX_BYTES:
                raise ValueError(f"it is larger than {_MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"not whole after {_DEADLINE_S:.0f} s")
    if size is not None and len(content) != size:
        raise ValueError(f"the download broke off after {len(content):,} of {size:,} bytes")
    return bytes(content)


def _unavailable(url: str, wanted: PublishedProjector, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{url}: cannot be had ({reason}); download {wanted.file_name} on a connected machine, "
        "copy it here and pass --projector FILE"
    )


def _read_authors_file(file: IO[bytes], size: int, name: str) -> dict[str, torch.Tensor]:
    """Read ``{"trainable_linearlayer": {"fc.0.weight": …}}``; ``size`` in bytes bounds what may be allocated."""
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records are compressed, which PyTorch never does")
        file.seek(0)
        with warnings.catch_warnings(action="ignore"):  # it warns of what else a file holds; that is refused below
            content = torch.load(file, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise _foreign(name, "it is damaged, or holds more than weights") from error
    layers = content.get("trainable_linearlayer") if isinstance(content, dict) else None
    if not isinstance(layers, dict) or not layers:
        raise _foreign(name, "it has no trainable_linearlayer")
    if set(layers) != {f"fc.{i}.{part}" for i in range(len(layers) // 2) for part in ("weight", "bias")}:
        raise _foreign(name, "its layers are not fc.0, fc.1 … each with weight and bias")
    # A tensor may claim more elements than are stored (a stride of 0, no values at all): never touch such a one.
    tensors = {key: value for key, value in layers.items() if isinstance(value, torch.Tensor) and _is_plain(value)}
    if len(tensors) < len(layers) or sum(value.numel() * value.element_size() for value in tensors.values()) > size:
        raise _foreign(name, "its layers are not plain numbers")
    joint_width = tensors["fc.0.bias"].numel()
    for key, value in tensors.items():
        shape = tuple(value.shape)
        if 0 in shape or shape[0] != joint_width or len(shape) != (2 if key.endswith("weight") else 1):
            raise _foreign(name, f"{key} of shape {shape} does not fit a joint width of {joint_width}")
        if not bool(torch.isfinite(value).all()):
            raise _foreign(name, f"{key} has NaN or infinite values")
    return {key: value.detach().float().clone(memory_format=torch.contiguous_format) for key, value in tensors.items()}


def _is_plain(tensor: torch.Tensor) -> bool:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    return tensor.dtype in dtypes and tensor.layout == torch.strided and tensor.device.type == "cpu" and tensor.ndim > 0


def _foreign(name: str, reason: str) -> ArtifactError:
    return ArtifactError(f"{name}: is not a projector of APRIL-GAN's authors ({reason}); name another file")
