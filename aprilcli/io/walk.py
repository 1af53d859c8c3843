"""Folders of pictures, walked in order and in little memory, whatever they hold."""

from __future__ import annotations

import heapq
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from aprilcli.errors import InputError
from aprilcli.text import printable

EXTENSIONS = frozenset(
    {b".jpg", b".jpeg", b".jpe", b".jfif", b".png", b".tif", b".tiff", b".bmp"}
    | {b".webp", b".pbm", b".pgm", b".ppm", b".pnm", b".pfm"}
)
NAMES_AT_ONCE = 50_000  # names of one folder in memory; larger folders are listed again for the next so many


def is_image_name(name: str | bytes) -> bool:
    """Say whether a file's name has the extension of a picture, in any case."""
    name = os.fsencode(name)
    return name[name.rfind(b".") :].lower() in EXTENSIONS


@dataclass(frozen=True)
class FoundImage:
    """A file to read: its path, and its path relative to the folder, with ``/``.

    Bytes that are not UTF-8 stand as surrogates in ``relative`` (``os.fsdecode``), so that it leads back to the file.
    ``error`` says why a folder could not be listed; its ``relative`` ends in ``/``.
    """

    path: Path
    relative: str
    error: str | None = None


def find_images(folder: Path, *, follow: bool = False, leave_out: Path | None = None) -> Iterator[FoundImage]:
    """Yield every picture below a folder, known by its extension in any case, sorted by relative path.

    The order is that of the paths' bytes (``LC_ALL=C sort``). Names with a leading dot are skipped. Linked files count;
    linked folders are entered only with ``follow``, each once, and never from inside themselves. The folder
    ``leave_out`` is not entered, whichever way leads there. What is listed may still turn out unreadable: a dangling
    link is a picture that cannot be opened.
    """
    entered: set[tuple[int, int]] = set()  # targets of links: folders that link to each other would multiply
    pending = [("", _names(folder, follow))]  # a stack of our own: folders may lie deeper than Python recurses
    while pending:
        prefix, names = pending[-1]
        try:
            name = next(names, None)
        except OSError as error:
            pending.pop()
            reason = f"the folder cannot be listed ({error.strerror or error}); check that it is there and readable"
            yield FoundImage(folder / prefix, prefix or "./", f"{printable(folder / prefix)}: {reason}")
            continue
        if name is None:
            pending.pop()
            continue
        relative = prefix + os.fsdecode(name)
        if not relative.endswith("/"):
            yield FoundImage(folder / relative, relative)
        elif leave_out is not None and _is_same(folder / relative, leave_out):
            pass
        elif not follow or _is_new(folder / relative, (folder / above for above, _ in pending), entered):
            pending.append((relative, _names(folder / relative, follow)))


def require_folder(folder: Path) -> None:
    """Raise InputError unless ``folder`` is one that can be looked into."""
    try:
        found = folder.stat()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise InputError(f"{printable(folder)}: {reason}; give the folder that holds the pictures") from error
    if not stat.S_ISDIR(found.st_mode):
        raise InputError(f"{printable(folder)}: is not a folder; give the folder that holds the pictures")


def _is_same(folder: Path, other: Path) -> bool:
    try:
        return folder.samefile(other)
    except OSError:  # one of them is not there, or cannot be looked at: listing it will say why
        return False


def _is_new(folder: Path, above: Iterable[Path], entered: set[tuple[int, int]]) -> bool:
    """Say whether to enter a folder: not one that we are in, nor the target of a link that was entered before."""
    try:
        if any(folder.samefile(other) for other in above):
            return False
        if folder.is_symlink():
            status = folder.stat()
            target = (status.st_dev, status.st_ino)
            if target in entered:
                return False
            entered.add(target)
    except OSError:
        pass  # listing it will say why
    return True


def _names(folder: Path, follow: bool) -> Iterator[bytes]:
    """List one folder in order; names of folders end in ``/``, which sorts them as their contents' paths sort."""
    last = b""
    while True:
        with os.scandir(os.fsencode(folder)) as entries:
            # What was yielded is passed over by its name alone, which costs little; a folder's name ends in "/".
            ahead = (entry for entry in entries if entry.name + b"/" > last)
            names = heapq.nsmallest(NAMES_AT_ONCE, (name for entry in ahead if (name := _wanted(entry, follow)) > last))
        yield from names
        if len(names) < NAMES_AT_ONCE:
            return
        last = names[-1]


def _wanted(entry: os.DirEntry[bytes], follow: bool) -> bytes:
    """Return the entry's name, marked if it is a folder; empty where it is skipped."""
    name = entry.name
    if name.startswith(b"."):
        return b""
    wanted = is_image_name(name)
    try:
        if entry.is_dir(follow_symlinks=follow):
            return name + b"/"
        # Pipes and devices are left alone; a dangling link is a picture that has gone.
        wanted = wanted and (entry.is_file() or (entry.is_symlink() and not entry.is_dir()))
    except OSError:  # what it is cannot be told: reading it will say why
        pass
    return name if wanted else b""
