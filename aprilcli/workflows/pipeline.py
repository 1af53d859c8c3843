"""What every command that reads pictures shares: threads that run ahead, in order, in bounded memory."""

from __future__ import annotations

import collections
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aprilcli.errors import InputError
from aprilcli.io.images import MAX_PIXELS, SourceImage, read_image
from aprilcli.io.walk import FoundImage
from aprilcli.text import printable

TRANSIENT_ERRNOS = (
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EIO,
    errno.ESTALE,
)  # of the machine, not the file
TRY_AGAIN = "try again"  # the stamp of no file, so that a resumed scan reads it anew

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedImage:
    """A found file, decoded and prepared.

    ``pixels`` [3, S, S] float32, None where ``error`` says why; ``size_hw`` of the source; ``stamp`` of the file as it
    was read.
    """

    found: FoundImage
    pixels: NDArray[np.float32] | None = None
    size_hw: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    error: str | None = None
    stamp: str = ""


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Map on threads, in order, with at most ``ahead`` results waiting: memory does not grow with the folder."""
    waiting: collections.deque[Future[Result]] = collections.deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        # What is done is handed on at once, so a row stands on disk as soon as its map does.
        while waiting and (len(waiting) > ahead or waiting[0].done()):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True)
class Reader:
    """Reads one file after another: how to prepare a picture for the model, and ``read_image``'s own settings."""

    prepare: Callable[[SourceImage], NDArray[np.float32]]
    value_range: tuple[float, float] | None = None
    max_pixels: int = MAX_PIXELS

    def __call__(self, found: FoundImage) -> PreparedImage:
        """Read and prepare one file; what goes wrong stands in ``error``."""
        before = stamp(found)  # a change while it is read shows as one afterwards
        if found.error is not None:
            return PreparedImage(found, error=found.error, stamp=before)
        try:
            source = read_image(found.path, value_range=self.value_range, max_pixels=self.max_pixels)
            pixels = self.prepare(source)
        except InputError as error:
            cause = error.__cause__
            passing = isinstance(cause, OSError) and cause.errno in TRANSIENT_ERRNOS
            return PreparedImage(found, error=str(error), stamp=TRY_AGAIN if passing else before)
        except MemoryError:
            error_line = f"{printable(found.path)}: not enough memory to decode it; free some, or give fewer --workers"
            return PreparedImage(found, error=error_line, stamp=TRY_AGAIN)
        return PreparedImage(found, pixels, source.size_hw, source.notes, stamp=before)


def stamp(found: FoundImage) -> str:
    """Tell a file from a changed one, and one that may be read from one that may not.

    Size in bytes, times of writing and of any change in nanoseconds, inode, and whether it may be read.
    """
    try:
        status = found.path.stat()
        readable = os.access(found.path, os.R_OK)
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {readable:d}"


def read_all(
    pool: ThreadPoolExecutor, found: Iterable[FoundImage], reader: Reader, ahead: int
) -> Iterator[PreparedImage]:
    """Read and prepare files on threads, in order."""
    return map_ahead(pool, reader, found, ahead)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C finish what is in hand: yields a function that says whether it was pressed.

    A second one stops at once. Who starts this with Ctrl-C ignored (in the background of a script) keeps it so.
    """
    pressed = threading.Event()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    is_heard = threading.current_thread() is threading.main_thread()  # no other thread hears signals
    if not is_heard or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
