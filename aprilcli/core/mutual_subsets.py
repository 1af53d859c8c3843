"""Large folders are split into subsets, whose images score each other: the work per image does not grow with a folder.

A subset is the set of names whose hashes start with the same bits: it is split in two when it has more than ``LARGEST``
images. So subsets have about 128 to 256 images, and an image that is added or removed changes only its own subset
(which may be split, or joined with its sibling).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

LARGEST = 256  # images
LEAST = 8  # images that can score each other: with fewer, the lowest 30 % of the others are one or none


def split(names: Sequence[str]) -> list[list[int]]:
    """Return the positions of the names of each subset, ascending; subsets are in the order of their hashes."""
    hashes = [int.from_bytes(hashlib.blake2b(os.fsencode(name), digest_size=8).digest()) for name in names]
    return _split(list(range(len(names))), hashes, 63)


def _split(positions: list[int], hashes: Sequence[int], bit: int) -> list[list[int]]:
    if len(positions) <= LARGEST or bit < 0:
        return [positions]
    halves = ([at for at in positions if hashes[at] >> bit & 1 == value] for value in (0, 1))
    return [subset for half in halves if half for subset in _split(half, hashes, bit - 1)]
