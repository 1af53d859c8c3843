"""Arrays of many images on disk, such as patch tokens: written image by image, read through memory maps."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike, NDArray


def slot_bytes(shapes: Sequence[tuple[int, ...]], dtype: DTypeLike = np.float32) -> int:
    """Return the bytes that one image takes in a store of these arrays."""
    return sum(math.prod(shape) for shape in shapes) * np.dtype(dtype).itemsize


def free_bytes(folder: Path) -> int:
    """Return the free disk space at ``folder``, which must exist. Raises OSError."""
    return shutil.disk_usage(folder).free


class FeatureStore:
    """N arrays per image, such as the patch tokens [L, Cv] of N stages, in a folder of N files [slots, …], raw.

    The files are sparse until images are put into them. The store has one writer, which knows which images it has put
    into it.
    """

    def __init__(
        self,
        folder: Path,
        slots: int,
        shapes: Sequence[tuple[int, ...]],
        dtype: DTypeLike = np.float32,
        *,
        kept: int = 0,
    ) -> None:
        """Create the files for ``slots`` images; the first ``kept`` of an earlier store stay. Raises OSError."""
        folder.mkdir(parents=True, exist_ok=True)
        self._paths = [folder / f"stage{number}.bin" for number in range(1, len(shapes) + 1)]
        self._maps: list[np.memmap] = []
        for path, shape in zip(self._paths, shapes, strict=True):
            if not kept:
                path.unlink(missing_ok=True)
            path.touch()
            os.truncate(path, max(1, slots) * slot_bytes([shape], dtype))
            self._maps.append(np.memmap(path, np.dtype(dtype), "r", shape=(slots, *shape)))
        self._filled = np.arange(slots) < kept

    def has(self, index: int) -> bool:
        """Return whether the image of this index has been put into the store."""
        return bool(self._filled[index])

    def put(self, index: int, arrays: Sequence[NDArray[np.generic]]) -> None:
        """Write the N arrays of an image. Raises OSError; the image is then not in the store.

        Raises ValueError if their shapes are not those of the store.
        """
        for path, mapped, array in zip(self._paths, self._maps, arrays, strict=True):
            if array.shape != mapped.shape[1:]:
                raise ValueError(f"shape {array.shape} against {mapped.shape[1:]}")
            content = np.ascontiguousarray(array, mapped.dtype).tobytes()
            # Not through the map: there, a full disk ends the process instead of raising OSError.
            with path.open("r+b") as file:
                file.seek(index * len(content))
                file.write(content)
        self._filled[index] = True

    def get_stage(self, number: int, indices: Sequence[int]) -> NDArray[np.generic]:
        """Return a copy of one of the N arrays of some images, [len(indices), …]. Raises KeyError for a missing one."""
        for index in indices:
            if not self._filled[index]:
                raise KeyError(index)
        return np.array(self._maps[number][list(indices)])

    def get(self, indices: Sequence[int]) -> tuple[NDArray[np.generic], ...]:
        """Return copies of the arrays of some images, N × [len(indices), …]. Raises KeyError for a missing image."""
        return tuple(self.get_stage(number, indices) for number in range(len(self._maps)))


def remove_store(folder: Path) -> None:
    """Delete the files of a store, and the folder if nothing else is in it; what cannot be deleted stays."""
    with suppress(OSError):
        for path in folder.glob("stage*.bin"):
            path.unlink()
        folder.rmdir()
