"""Nearest-neighbour search in a memory bank (eq. 4): cosine distances, and leave-one-out over the bank's sources."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch

from aprilcli.core.memory_bank import MemoryBank, unit_rows
from aprilcli.errors import InputError

SIMILARITIES = 8 * 1024**2  # bytes of cosines held at a time: they stay in a processor's cache


@torch.inference_mode()
def nearest_distance(patch_tokens: torch.Tensor, *bank_features: torch.Tensor) -> torch.Tensor:
    """Eq. 4: 1 − the largest cosine to any row of the bank, in [0, 2], float32.

    ``patch_tokens`` [B, L, Cv], of any length; ``bank_features`` [M, Cv] unit rows in one piece or several, all on one
    device. Returns [B, L]. Cosines are taken and compared in float32, ``SIMILARITIES`` bytes of them at a time
    (and at most three times that of rows made float32), one picture at a time: memory does not grow with B·L·M, and a
    picture's distances never depend on its neighbours.
    """
    pictures = [unit_rows(tokens) for tokens in patch_tokens]
    largest = torch.full(patch_tokens.shape[:2], -1.0, device=patch_tokens.device)
    size = max(1, SIMILARITIES // (4 * max(patch_tokens.shape[1:])))  # where L < Cv the rows themselves are larger
    for rows in itertools.chain.from_iterable(torch.split(piece, size) for piece in bank_features if len(piece)):
        columns = unit_rows(rows).T  # again: float16 rows are units but for their rounding, which would be a distance
        for best, picture in zip(largest, pictures, strict=True):
            torch.maximum(best, (picture @ columns).amax(dim=1), out=best)
    return (1 - largest).clamp_(0, 2)


def leave_one_out(bank: MemoryBank, references: MemoryBank) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each source's distances to ``bank`` without its own rows, N × [1, L], in the order of the sources.

    ``references`` holds the same sources with all their rows: the bank itself, or what it was thinned from. Nothing is
    copied: the bank without a source is what lies before and after its rows. A stage in which a thinned bank has no
    row of any other source has distance 2 everywhere. Raises InputError where there is but one source.
    """
    if len(bank.sources) == 1:
        raise InputError(f"{bank.sources[0].path}: one reference alone cannot be left out; give a second good photo")
    if bank.sources != references.sources or references.coreset_fraction != 1:
        raise ValueError("leave_one_out needs all rows of the bank's own sources")
    own = [list(itertools.accumulate(counts, initial=0)) for counts in bank.rows_per_source]
    whole = [list(itertools.accumulate(counts, initial=0)) for counts in references.rows_per_source]
    for k in range(len(bank.sources)):
        yield tuple(
            nearest_distance(tokens[None, start[k] : start[k + 1]], rows[: skip[k]], rows[skip[k + 1] :])
            for tokens, start, rows, skip in zip(references.features, whole, bank.features, own, strict=True)
        )
