"""Download, verify and cache the projectors that the authors of APRIL-GAN published.

The PyTorch files are in ``exps/pretrained/`` of github.com/ByChelsea/VAND-APRIL-GAN. A download is kept in memory and
verified by its git blob id. It is then read without running pickled code and cached as safetensors.
``APRILCLI_CACHE`` sets the cache folder. ``APRILCLI_PROJECTOR_URL`` sets the URL of a mirror of the folder above.
"""

from __future__ import annotations

import http.client
import io
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from hashlib import sha1
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from aprilcli import __version__
from aprilcli.defaults import MVTEC, VISA
from aprilcli.errors import ArtifactError, OutputError
from aprilcli.io.artifacts import Schema, read_artifact, write_artifact
from aprilcli.io.atomic import claimed, output_errors, remove_leftovers
from aprilcli.io.authors_format import read_authors_file
from aprilcli.io.cache import cache_folder
from aprilcli.text import first_line

BASE_URL = "https://github.com/ByChelsea/VAND-APRIL-GAN/raw/f13b8a634e04f9fde8fa03db125b25af5695d8e1/exps/pretrained"

_TIMEOUT_S = 10.0  # to connect, and for each read
_DEADLINE_S = 600.0  # for the whole download
_MAX_BYTES = 64 * 1024**2  # the published files have about 12 MB
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class PublishedProjector:
    """A published file: its name under the base URL and the git blob id of its content."""

    file_name: str
    blob_id: str


PUBLISHED = {
    VISA: PublishedProjector("visa_pretrained.pth", "86d6848c543f8393663d35c0333498ffb5ce9b68"),
    MVTEC: PublishedProjector("mvtec_pretrained.pth", "a057cec6c2ba5996baa0160a51e155908156813f"),
}


@dataclass(frozen=True)
class _Fields:
    """The JSON fields of a cached file that are read back."""

    blob_id: str


_SCHEMA = Schema("published-projector", _Fields, None, "delete it; it will be downloaded again")


def fetch_projector(name: str, *, progress: bool = False) -> dict[str, torch.Tensor]:
    """Return a published projector from the cache folder; download it first if it is not there.

    ``name``: a key of ``PUBLISHED``. ``progress``: show a progress bar if stderr is a terminal.
    Returns ``fc.{i}.weight`` [C, Cv] and ``fc.{i}.bias`` [C], float32.
    If two processes call this at the same time, the second waits and uses the file of the first. Raises ArtifactError
    if the download fails (within seconds if there is no network), OutputError if the cache folder cannot be written.
    """
    wanted = PUBLISHED[name]
    path = cache_folder() / "projectors" / f"{name}.safetensors"
    tensors = _cached(path, wanted)
    if tensors is None:
        try:
            with output_errors(path):
                busy = f"{path}: another process is still downloading it; wait for it"
                with claimed(path.parent / ".lock", busy, timeout=_DEADLINE_S):
                    tensors = _cached(path, wanted) or _fetch(path, name, wanted, progress)
        except OutputError as error:
            raise OutputError(f"{error}; APRILCLI_CACHE sets the cache folder") from error
    return tensors


def git_blob_id(content: bytes) -> str:
    """Return git's id of a file's content: SHA-1 over ``blob <size>\\0`` + content, hexadecimal."""
    return sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _cached(path: Path, wanted: PublishedProjector) -> dict[str, torch.Tensor] | None:
    """Read the cached file; return None if it is missing, damaged or has another blob id."""
    try:
        artifact = read_artifact(path, _SCHEMA)
    except ArtifactError:
        return None
    return artifact.tensors if artifact.content.blob_id == wanted.blob_id else None


def _fetch(path: Path, name: str, wanted: PublishedProjector, progress: bool) -> dict[str, torch.Tensor]:
    remove_leftovers(path.parent)  # of killed processes; the lock excludes other writers
    url = f"{(os.environ.get('APRILCLI_PROJECTOR_URL') or BASE_URL).rstrip('/')}/{wanted.file_name}"
    try:
        content = _download(url, name, progress)
        found = git_blob_id(content)
        if found != wanted.blob_id:
            raise ValueError(f"unexpected content: git blob {found[:12]} instead of {wanted.blob_id[:12]}")
    except urllib.error.HTTPError as error:
        error.close()
        raise _unavailable(url, wanted, f"HTTP {error.code}") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        cause = getattr(error, "reason", None)  # a URLError wraps the informative exception
        raise _unavailable(url, wanted, first_line(cause if isinstance(cause, Exception) else error)) from error
    tensors = read_authors_file(io.BytesIO(content), len(content), url)
    write_artifact(path, _SCHEMA.kind, tensors, {"name": name, "url": url, "blob_id": wanted.blob_id})
    return tensors


def _download(url: str, name: str, progress: bool) -> bytes:
    """Download a URL into memory. Raises OSError, HTTPException, or ValueError if it is too large or incomplete."""
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
        while chunk := response.read1(_CHUNK_BYTES):
            content += chunk
            bar.update(task, completed=len(content))
            if max(size or 0, len(content)) > _MAX_BYTES:
                raise ValueError(f"larger than {_MAX_BYTES:,} bytes")
            if time.monotonic() > deadline:
                raise TimeoutError(f"incomplete after {_DEADLINE_S:.0f} s")
    if size is not None and len(content) != size:
        raise ValueError(f"the connection ended after {len(content):,} of {size:,} bytes")
    return bytes(content)


def _unavailable(url: str, wanted: PublishedProjector, reason: str) -> ArtifactError:
    return ArtifactError(
        f"{url}: cannot be downloaded ({reason}); download {wanted.file_name} on a connected machine, "
        "copy it here and use the copy as the projector"
    )
