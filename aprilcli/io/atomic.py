"""Files that appear whole or not at all: written aside in the same folder, synced, then renamed.

Whoever is killed while writing leaves the file of before as it was, and at most one hidden file beside it, which
``remove_leftovers`` finds. ``claimed`` keeps a second writer out.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock

from aprilcli.errors import OutputError

_LEFTOVER_PREFIX = ".aprilcli-"

_WAYS_ON = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "choose a place that takes larger files",
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EEXIST: "a part of this path is a file; choose another place",
    errno.EISDIR: "a folder of this name stands there; choose another name",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn any OSError of the body, which only writes, into an OutputError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        way_on = _WAYS_ON.get(error.errno or 0, "choose another place")
        raise OutputError(f"{path}: cannot be written ({reason}); {way_on}") from error


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a new path beside ``path`` to write to; when the body ends well, it becomes ``path``, synced to disk.

    The folder is made if need be. The name given is hidden, unique, and ends in the suffix of ``path``. When the body
    raises, it is removed and what stood at ``path`` stays. Raises OutputError for every OSError, the body's included.
    """
    # Not built from the whole name, which with anything added could be longer than the file system takes.
    aside = path.with_name(f"{_leftover_prefix(path)}{secrets.token_hex(4)}{path.suffix}")
    try:
        with output_errors(path):
            make_folders(path.parent)
            yield aside
            with aside.open("r+b") as file:
                os.fsync(file.fileno())
            aside.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _leftover_prefix(path: Path) -> str:
    return f"{_LEFTOVER_PREFIX}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


@contextmanager
def claimed(lock_path: Path, busy: str) -> Iterator[None]:
    """Hold ``lock_path``, its folder made if need be, against a second holder, who is told ``busy`` (OutputError)."""
    lock = filelock.FileLock(lock_path, timeout=0)
    with output_errors(lock_path):
        make_folders(lock_path.parent)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise OutputError(busy) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed_file(path: Path, busy: str, *others: Path) -> Iterator[None]:
    """Hold ``path`` against a second writer, and take away what a killed writer of it, and of ``others``, left."""
    with claimed(path.with_name(f".{path.name}.lock"), f"{path}: {busy}"):
        with output_errors(path):
            for written in (path, *others):
                for leftover in written.parent.glob(f"{_leftover_prefix(written)}*"):
                    leftover.unlink(missing_ok=True)
        yield


def remove_leftovers(folder: Path, *, below: bool = True) -> int:
    """Delete what killed writers left aside in ``folder``, and in those below it; return how many files that were.

    Only for whoever is the folder's one writer: another one's unfinished file looks the same. Raises OutputError.
    """
    count = 0
    with output_errors(folder):
        for entry in _below(folder, enter=below):
            if entry.name.startswith(_LEFTOVER_PREFIX) and not entry.is_dir(follow_symlinks=False):
                Path(entry.path).unlink(missing_ok=True)
                count += 1
    return count


def remove_tree(folder: Path) -> None:
    """Delete a folder and all in it, however deep. Raises OutputError, and touches nothing, where it is a link."""
    with output_errors(folder):
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a link: what it leads to is not deleted")
        folders = [folder]
        for entry in _below(folder):
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            else:
                Path(entry.path).unlink(missing_ok=True)
        for emptied in reversed(folders):  # a folder was listed before those in it
            emptied.rmdir()


def make_folders(folder: Path) -> None:
    """Make a folder and those above it that lack, however many. Raises OSError."""
    missing = list(itertools.takewhile(lambda one: not one.exists(), (folder, *folder.parents)))
    for one in reversed(missing):
        one.mkdir(exist_ok=True)
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _below(folder: Path, enter: bool = True) -> Iterator[os.DirEntry[str]]:
    """Yield all entries below a folder, one that is not there has none; pathlib recurses, and lists folders whole."""
    pending = [str(folder)]
    while pending:
        try:
            entries = os.scandir(pending.pop())
        except FileNotFoundError:
            continue
        with entries:
            for entry in entries:
                if enter and entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
                yield entry


def _sync_folder(folder: Path) -> None:
    # The rename itself must survive a power cut. Windows cannot open a folder, some network file systems cannot sync
    # one; the file in it is whole either way.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
