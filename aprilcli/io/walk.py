"""Find the images below a folder, in a fixed order and with little memory."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from aprilcli.errors import InputError
from aprilcli.text import printable

EXTENSIONS = frozenset(
    {b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".tif", b".tiff", b".bmp"}
    | {b".webp", b".pbm", b".pgm", b".ppm", b".pnm", b".pfm"}
)
MAX_NAMES = 50_000  # names of a folder held in memory; a larger folder is listed again for each further batch


def is_image_name(name: str | bytes) -> bool:
    """Return whether a file name has an image's extension, in any case."""
    name = os.fsencode(name)
    return name[name.rfind(b".") :].lower() in EXTENSIONS


@dataclass(frozen=True)
class FoundImage:
    """A file to read: its path, and its path relative to the folder, with ``/``.

    Bytes that are not UTF-8 are surrogates in ``relative`` (``os.fsdecode``), so that it still names the file.
    ``error`` is the reason why a folder could not be listed; its ``relative`` ends in ``/``.
    """

    path: Path
    relative: str
    error: str | None = None


def find_images(folder: Path, *, follow: bool = False, leave_out: Path | None = None) -> Iterator[FoundImage]:
    """Yield every file below a folder that has an image's extension, sorted by the bytes of its relative path.

    Names with a leading dot are skipped. Links to files count; links to folders are entered only with ``follow``, each
    target once, and never a folder from inside itself. The folder ``leave_out`` is not entered, by any path. The files
    may still be unreadable; a dangling link is one of them.
    """
    entered: set[tuple[int, int]] = set()  # targets of the links followed so far: linked folders may link to each other

    def walk(prefix: str, parents: tuple[tuple[int, int] | None, ...]) -> Iterator[FoundImage]:
        try:
            for name in _names(folder / prefix, follow):
                relative = prefix + os.fsdecode(name)
                path = folder / relative
                if not relative.endswith("/"):
                    yield FoundImage(path, relative)
                    continue
                identity = _identity(path)
                if identity is not None:
                    is_link = path.is_symlink()
                    is_left_out = leave_out is not None and identity == _identity(leave_out)
                    if is_left_out or identity in parents or (is_link and identity in entered):
                        continue
                    if is_link:
                        entered.add(identity)
                yield from walk(relative, (*parents, identity))
        except OSError as error:
            reason = f"the folder cannot be listed ({error.strerror or error}); check that it exists and is readable"
            yield FoundImage(folder / prefix, prefix or "./", f"{printable(folder / prefix)}: {reason}")

    yield from walk("", (_identity(folder),))


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return a folder's device and inode; None if it cannot be accessed, which listing it will report."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def require_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` is an existing folder."""
    try:
        found = folder.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{printable(folder)}: {reason}; give the folder that holds the images") from error
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{printable(folder)}: is not a folder; give the folder that holds the images")


def _names(folder: Path, follow: bool) -> Iterator[bytes]:
    """List a folder in order; names of folders end in ``/``, which sorts them like the paths of their contents."""
    last = b""
    while True:
        with os.scandir(os.fsencode(folder)) as entries:
            # Skips most names that were already yielded before the more expensive test; a folder's name ends in "/".
            ahead = (entry for entry in entries if entry.name + b"/" > last)
            names = heapq.nsmallest(MAX_NAMES, (name for entry in ahead if (name := _wanted(entry, follow)) > last))
        yield from names
        if len(names) < MAX_NAMES:
            return
        last = names[-1]


def _wanted(entry: os.DirEntry[bytes], follow: bool) -> bytes:
    """Return the entry's name, with ``/`` if it is a folder; empty if it is skipped."""
    name = entry.name
    if name.startswith(b"."):
        return b""
    wanted = is_image_name(name)
    try:
        if entry.is_dir(follow_symlinks=follow):
            return name + b"/"
        # Pipes and devices are skipped. A dangling link counts, so that its image is reported as missing.
        wanted = wanted and (entry.is_file() or (entry.is_symlink() and not entry.is_dir()))
    except OSError:  # its kind is unknown; reading it will report the reason
        pass
    return name if wanted else b""
