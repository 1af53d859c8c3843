"""Nearest-neighbor search: cosine distances to a memory bank (eq. 4), also without one source, and Euclidean ones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from aprilcli.core.memory_bank import MemoryBank, unit_rows
from aprilcli.errors import InputError

SIMILARITIES = 8 * 1024**2  # bytes of cosines held at a time, so that they stay in the processor's cache
PIECE = 4096  # patches of an image searched at a time: more would leave room for few rows of the bank


@torch.inference_mode()
def nearest_distance(patch_tokens: torch.Tensor, *bank_features: torch.Tensor) -> torch.Tensor:
    """Eq. 4: 1 − the largest cosine to any row of the bank, in [0, 2], float32.

    ``patch_tokens`` [B, L, Cv], of any length; ``bank_features`` [M, Cv] unit rows, float32 or float16, in one or
    several pieces, all on one device. Returns [B, L]. Cosines are computed and compared in float32, ``SIMILARITIES``
    bytes at a time (and at most three times that for rows converted to float32), image by image: memory does not grow
    with B·L·M, and the distances of an image do not depend on the other images.
    """
    pieces = [piece for tokens in patch_tokens for piece in torch.split(unit_rows(tokens), PIECE)]
    largest = torch.full(patch_tokens.shape[:2], -1.0, device=patch_tokens.device)
    found = [piece for image in largest for piece in torch.split(image, PIECE)]  # views
    longest = max(min(PIECE, patch_tokens.shape[1]), patch_tokens.shape[2])  # if L < Cv, rows are larger than cosines
    size = max(1, SIMILARITIES // (4 * longest))
    for rows in itertools.chain.from_iterable(torch.split(piece, size) for piece in bank_features if len(piece)):
        # Rows rounded to float16 are not exactly of unit length, which would count as a distance.
        columns = (rows if rows.dtype == torch.float32 else unit_rows(rows)).T
        for best, piece in zip(found, pieces, strict=True):
            torch.maximum(best, (piece @ columns).amax(dim=1), out=best)
    return (1 - largest).clamp_(0, 2)


@torch.inference_mode()
def nearest_euclidean(rows: torch.Tensor, others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Euclidean distance of each row [L, C] to the nearest of ``others`` [M, C], and its position, [L] each.

    Both float32. Candidates come from |a|² + |b|² − 2ab, ``SIMILARITIES`` bytes at a time, measured from the mean of
    the rows so that what all have in common costs no digits; the distance itself comes from the difference.
    """
    center = rows.mean(dim=0)
    centered = rows - center
    squares = torch.full((len(rows),), torch.inf, device=rows.device)
    positions = torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    size, first = max(1, SIMILARITIES // (4 * max(rows.shape))), 0
    for piece in torch.split(others, size):
        columns = piece - center
        found = torch.addmm(columns.square().sum(dim=1), centered, columns.T, alpha=-2).min(dim=1)
        is_nearer = found.values < squares
        squares = torch.where(is_nearer, found.values, squares)
        positions = torch.where(is_nearer, found.indices + first, positions)
        first += len(piece)
    pieces = zip(torch.split(rows, PIECE), torch.split(positions, PIECE), strict=True)
    return torch.cat([(own - others[at]).norm(dim=1) for own, at in pieces]), positions


@torch.inference_mode()
def nearest_in_banks(
    patch_tokens: torch.Tensor, references: Sequence[torch.Tensor], banks: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Return the distances to several banks of the same references, [B, F, L], each reference searched once.

    ``references``: K × [L, Cv] unit rows; ``banks``: F × positions of references. The distance to a bank is the
    smallest of the distances to its references.
    """
    each = torch.stack([nearest_distance(patch_tokens, rows) for rows in references], dim=1)
    return torch.stack([each[:, list(positions)].amin(dim=1) for positions in banks], dim=1)


def leave_one_out(bank: MemoryBank, references: MemoryBank) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each source's distances to the rows of each other source in ``bank``, V·N × [K - 1, L], in their order.

    Their minimum over the other sources is the distance to the bank without the source. ``references`` holds all rows
    of the same sources: the bank itself, or the bank that it was subsampled from; those of a source as it is come
    first. In a stage in which a subsampled bank has no rows of a source, all distances to it are 2. Raises InputError
    for a single source.
    """
    if len(bank.sources) == 1:
        raise InputError(f"{bank.sources[0].path}: a single reference cannot be left out; add a second good image")
    if bank.sources != references.sources or references.coreset_fraction != 1:
        raise ValueError("leave_one_out needs all rows of the bank's own sources")
    own, whole = (
        [torch.split(rows, list(counts)) for rows, counts in zip(b.features, b.rows_per_source, strict=True)]
        for b in (bank, references)
    )
    for k in range(len(bank.sources)):
        images = (tokens[k][None, : len(tokens[k]) // references.copies] for tokens in whole)
        yield tuple(
            torch.cat([nearest_distance(image, rows) for rows in (*others[:k], *others[k + 1 :])])
            for image, others in zip(images, own, strict=True)
        )
