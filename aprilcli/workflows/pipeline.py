"""What every command that reads pictures shares: threads that run ahead, in order, in bounded memory."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from aprilcli.errors import InputError
from aprilcli.io.images import FoundImage, SourceImage, read_image

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Picture:
    """A found file, decoded and prepared.

    ``pixels`` [3, S, S] float32, None where ``error`` says why; ``size_hw`` of the source.
    """

    found: FoundImage
    pixels: NDArray[np.float32] | None = None
    size_hw: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()
    error: str | None = None


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


def read_all(
    pool: ThreadPoolExecutor,
    found: Iterable[FoundImage],
    prepare: Callable[[SourceImage], NDArray[np.float32]],
    ahead: int,
) -> Iterator[Picture]:
    """Read and prepare files on threads, in order."""
    return map_ahead(pool, functools.partial(read_picture, prepare=prepare), found, ahead)


def read_picture(found: FoundImage, prepare: Callable[[SourceImage], NDArray[np.float32]]) -> Picture:
    """Read and prepare one file; what goes wrong stands in ``error``."""
    if found.error is not None:
        return Picture(found, error=found.error)
    try:
        source = read_image(found.path)
    except InputError as error:
        return Picture(found, error=str(error))
    return Picture(found, prepare(source), source.size_hw, source.notes)
