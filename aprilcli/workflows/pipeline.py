"""How commands read images: on threads, ahead of the encoder, in order, in bounded memory."""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image

from aprilcli.errors import InputError
from aprilcli.io.images import SourceImage, read_image
from aprilcli.io.walk import FoundImage, LeftOut
from aprilcli.options import ReadOptions
from aprilcli.text import listed, printable

if TYPE_CHECKING:
    from aprilcli.core.detector import ModelInput

# Errors of the machine, not of the file.
TRANSIENT_ERRNOS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE)
TRY_AGAIN = "try again"  # the stamp of no file, so a resumed scan reads the file again
BLANK = "a blank image, all pixels are nearly equal; check the camera, its lens cap and the light"
NO_IMAGES = "no images in it; check the path"
BLANK_LEVELS = 2  # of 256; the pixels of a photographed surface differ by more
WORKER_NICENESS = 10  # more than the encoder's; a preempted thread of the encoder delays the others, which wait for it
LISTED = 10  # names in a note; the others are counted

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class PreparedImage:
    """A found file, decoded and prepared for the model.

    ``input``: None if ``error`` gives a reason. ``size_hw`` of the source. ``stamp`` of the file when it was read.
    """

    found: FoundImage
    input: ModelInput | None = None
    size_hw: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    error: str | None = None
    stamp: str = ""


class LeftOutFolders:
    """Counts the folders that a walk does not enter, and names the first of each kind; pass it as ``on_left_out``."""

    def __init__(self) -> None:
        """Start without any."""
        self._names: dict[LeftOut, list[str]] = collections.defaultdict(list)

    def __call__(self, relative: str, reason: LeftOut) -> None:
        """Add a folder."""
        self._names[reason].append(relative)

    def notes(self) -> Iterator[str]:
        """Yield a line for each kind of folder."""
        for reason, names in sorted(self._names.items()):
            advice = "; --follow enters them" if reason == LeftOut.link else ""
            yield f"left out {reason}: {listed(names, LISTED)}{advice}"


def worker_threads(workers: int) -> ThreadPoolExecutor:
    """Return threads that read images and write maps; they give way to the thread that encodes, where possible."""
    return ThreadPoolExecutor(workers, initializer=_lower_priority)


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere, a priority is that of the whole process
        with contextlib.suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + WORKER_NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)


def map_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int
) -> Iterator[Result]:
    """Map on threads, in order, with at most ``ahead`` waiting results: memory does not grow with their number.

    Another thread iterates over ``items``, so a result is yielded as soon as it is there, while the next item is made.
    """
    submitted: queue.SimpleQueue[Future[Result] | None] = queue.SimpleQueue()
    room = threading.Semaphore(ahead)
    closed = threading.Event()

    def submit_all() -> None:
        try:
            for item in items:
                submitted.put(pool.submit(function, item))
                room.acquire()
                if closed.is_set():
                    return
        except BaseException as error:  # raised again where the results are used
            failed: Future[Result] = Future()
            failed.set_exception(error)
            submitted.put(failed)
        finally:
            submitted.put(None)

    thread = threading.Thread(target=submit_all, daemon=True)
    thread.start()
    is_waiting = True
    try:
        while (future := submitted.get()) is not None:
            yield future.result()
            room.release()
    except KeyboardInterrupt:  # a second Ctrl-C does not wait for the item that is being made
        is_waiting = False
        raise
    finally:
        closed.set()
        room.release()
        if is_waiting:
            thread.join()


def images_ahead(options: ReadOptions, tile: int | None) -> int:
    """Return how many images to read ahead; with tiles a single one, as each keeps all of its pixels."""
    return 2 * (options.workers + options.batch_size) if tile is None else 1


def batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Yield ``size`` items at a time, at the end those that are left; no item is taken ahead of its batch."""
    while batch := list(itertools.islice(items, size)):
        yield batch


@dataclass(frozen=True)
class Reader:
    """Reads and prepares files; ``prepare`` turns a decoded image into the model's input.

    A blank image is an error: it would score as a good part, though the camera shows none.
    """

    prepare: Callable[[SourceImage], ModelInput]
    value_range: tuple[float, float] | None
    max_pixels: int

    def __call__(self, found: FoundImage) -> PreparedImage:
        """Read and prepare one file; failures are recorded in ``error``."""
        before = stamp(found)  # a change during reading shows as a change afterwards
        if found.error is not None:
            return PreparedImage(found, error=found.error, stamp=before)
        try:
            source = read_image(found.path, value_range=self.value_range, max_pixels=self.max_pixels)
            if _is_blank(source):
                message = f"{printable(found.path)}: {BLANK}"
                return PreparedImage(found, notes=source.notes, error=message, stamp=before)
            prepared = self.prepare(source)
        except InputError as error:
            cause = error.__cause__
            is_transient = isinstance(cause, OSError) and cause.errno in TRANSIENT_ERRNOS
            return PreparedImage(found, error=str(error), stamp=TRY_AGAIN if is_transient else before)
        except MemoryError:
            message = f"{printable(found.path)}: not enough memory to decode it; free some, or use fewer --workers"
            return PreparedImage(found, error=message, stamp=TRY_AGAIN)
        notes = (*source.notes, *prepared.notes)
        return PreparedImage(found, prepared, source.size_hw, notes, stamp=before)


def read_as_recorded(path: Path, options: Mapping[str, Any]) -> Image.Image:
    """Read an image as a finished run did, in RGB; ``options``: of its record. Raises InputError."""
    value_range = None if options["value_range"] is None else tuple(options["value_range"])
    try:
        return read_image(path, value_range=value_range, max_pixels=options["max_pixels"]).rgb
    except MemoryError as error:
        raise InputError(f"{printable(path)}: not enough memory to decode it; free some") from error


def _is_blank(source: SourceImage) -> bool:
    """Return whether no channel varies by more than ``BLANK_LEVELS``; a row in the middle shows it of most images."""
    middle = source.rgb.height // 2
    row = source.rgb.crop((0, middle, source.rgb.width, middle + 1))
    bands: Iterator[Any] = (image.getextrema() for image in (row, source.rgb))  # a pair per channel
    return all(high - low <= BLANK_LEVELS for channels in bands for low, high in channels)


def stamp(found: FoundImage) -> str:
    """Return a text that differs between a file and its changed or replaced version, readable or not.

    Size in bytes, times of modification and status change in nanoseconds, inode, and whether it may be read.
    """
    try:
        status = found.path.stat()
        readable = os.access(found.path, os.R_OK)
    except OSError:
        return "gone"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino} {readable:d}"
