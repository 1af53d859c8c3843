"""Write files completely or not at all: to a hidden file in the same folder, synced, then renamed.

A process that is killed while writing leaves the old file unchanged, and at most one hidden file beside it, which
``remove_leftovers`` deletes. ``claimed`` keeps a second writer out. What a file system does not support of this is
left out with a note, a warning of this module's logger.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import secrets
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import filelock

from aprilcli.errors import OutputError

NOTE_LOCK = "the file system has no locks: do not run two commands that write to the same place"
NOTE_SYNC = "the file system cannot sync files: after a power failure the last results may be damaged"
_LOGGER = logging.getLogger(__name__)
_LEFTOVER_PREFIX = ".aprilcli-"

# What calls answer that a file system does not support, on network drives above all; they fail in the same way there
# for all files, so the work continues without them. Not EIO, which is a fault of the disk.
_UNSUPPORTED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK, errno.EPERM)

_ADVICE = {
    errno.ENOSPC: "free some space or choose another place",
    errno.EDQUOT: "free some space or choose another place",
    errno.EFBIG: "choose a place that takes larger files",
    errno.EACCES: "choose a place you may write to",
    errno.EPERM: "choose a place you may write to",
    errno.EROFS: "choose a place you may write to",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of this path is a file; choose another place",
    errno.EEXIST: "a part of this path is a file; choose another place",
    errno.EISDIR: "a folder of this name exists; choose another name",
}


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError of the body, which must only write, into an OutputError that names ``path``."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        advice = _ADVICE.get(error.errno or 0, "choose another place")
        raise OutputError(f"{path}: cannot be written ({reason}); {advice}") from error


def check_writable(folder: Path) -> None:
    """Raise OutputError unless ``folder`` can be written to, or created in the nearest existing folder above it.

    Creates nothing. What only writing shows, such as a full disk, is found later.
    """
    with output_errors(folder):
        for nearest in (folder, *folder.absolute().parents):
            with suppress(FileNotFoundError):
                nearest.lstat()
                break
        if not nearest.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Yield a new path beside ``path`` to write to; it is synced and renamed to ``path`` if the body succeeds.

    Its name is hidden and unique, with the suffix of ``path``. Missing folders are created. If the body raises, the new
    file is deleted and ``path`` is unchanged. Raises OutputError for every OSError, including the body's.
    """
    # A hash, as the whole name with an addition could be longer than the file system allows.
    aside = path.with_name(f"{_leftover_prefix(path)}{secrets.token_hex(4)}{path.suffix}")
    try:
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            with aside.open("r+b") as file:
                sync(file)
            aside.replace(path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):
            aside.unlink(missing_ok=True)


def _leftover_prefix(path: Path) -> str:
    return f"{_LEFTOVER_PREFIX}{hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]}-"


def sync(file: IO[Any]) -> None:
    """Write an open file's content to disk; where the file system does not support this, log a note instead."""
    try:
        os.fsync(file.fileno())
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
        _LOGGER.warning(NOTE_SYNC)


@contextmanager
def claimed(lock_path: Path, busy: str, timeout: float = 0) -> Iterator[None]:
    """Hold the lock ``lock_path``, creating missing folders; OutputError(``busy``) if another process holds it.

    Waits ``timeout`` seconds for it. Where the file system has no locks, logs a note and continues without.
    """
    lock = filelock.FileLock(lock_path, timeout=timeout)
    with output_errors(lock_path):
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with warnings.catch_warnings():
                # filelock warns before it makes a file the lock, which would outlive a killed process.
                warnings.simplefilter("error")
                lock.acquire()
        except filelock.Timeout as error:
            raise OutputError(busy) from error
        except (OSError, NotImplementedError, UserWarning) as error:
            if isinstance(error, OSError) and error.errno not in _UNSUPPORTED:
                raise
            _LOGGER.warning(NOTE_LOCK)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed_file(path: Path, busy: str, *others: Path) -> Iterator[None]:
    """Lock ``path`` against a second writer, and delete what killed writers of it and of ``others`` left behind."""
    with claimed(path.with_name(f".{path.name}.lock"), f"{path}: {busy}"):
        with output_errors(path):
            for target in (path, *others):
                for leftover in target.parent.glob(f"{_leftover_prefix(target)}*"):
                    leftover.unlink(missing_ok=True)
        yield


def remove_leftovers(folder: Path, *, below: bool = True) -> int:
    """Delete the files that killed writers left in ``folder`` and, with ``below``, its subfolders; return their number.

    Only for the folder's single writer, as unfinished files of another look the same. A missing folder has none.
    Raises OutputError.
    """
    count = 0
    with output_errors(folder):
        for parent, _, names in os.walk(folder, onerror=_raise_unless_missing):
            for name in names:
                if name.startswith(_LEFTOVER_PREFIX):
                    Path(parent, name).unlink(missing_ok=True)
                    count += 1
            if not below:
                break
    return count


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def remove_tree(folder: Path) -> None:
    """Delete a folder with its contents. Raises OutputError, and deletes nothing if it is a link."""
    with output_errors(folder):
        if folder.is_symlink():
            raise OSError(errno.ELOOP, "a link; its target is not deleted")
        shutil.rmtree(folder)


def _sync_folder(folder: Path) -> None:
    # So that the rename survives a power failure. Windows cannot open a folder, and some network file systems cannot
    # sync it; the file is complete in any case.
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
