"""Thinning a memory bank: the rows that cover the rest, chosen as PatchCore chooses them."""

from __future__ import annotations

import torch

from aprilcli.errors import OptionError

CHUNK = 8 * 1024**2  # bytes of distances looked at together
CORESET_WIDTH = 128  # PatchCore's: random projections of this width stand for the rows while choosing
_CANDIDATES = 2048  # farthest rows among which the next centres are sought before all rows are looked at again
_CENTRES = 256  # centres chosen between two looks at all rows, at most


@torch.inference_mode()
def coreset(features: torch.Tensor, fraction: float, seed: int = 0) -> torch.Tensor:
    """Choose rows by greedy k-center: each time the one farthest from those chosen, as in PatchCore.

    (Roth et al.: Towards total recall in industrial anomaly detection, 2022, algorithm 1; Gonzalez 1985: the covering
    radius is at most twice the best one.) ``features`` [M, Cv] unit rows. Returns max(1, round(fraction · M)) indices
    [k] int64, ascending; the same for the same ``seed``. Distances are Euclidean. Rows wider than ``CORESET_WIDTH`` are
    projected to it at random for choosing (Johnson and Lindenstrauss), which keeps a distance within some 6 % (one
    standard deviation); the first row is drawn at random.

    The greedy choice is exact though all rows are only looked at in turns: distances to the chosen can only shrink,
    so while one of the ``_CANDIDATES`` farthest is still as far as the nearest of them was, no other row is farther.
    Memory beyond ``features``: M · 4 · (``CORESET_WIDTH`` + 2) bytes, and ``CHUNK``.
    """
    if not 0 < fraction <= 1:
        raise OptionError(
            f"a coreset keeps a fraction of the rows above 0 and up to 1, not {fraction}; give one like 0.1"
        )
    total = len(features)
    count = max(1, round(fraction * total))
    if count == total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(seed)
    rows = _projected(features, generator)
    norms = rows.square().sum(dim=1)
    centres = [int(torch.randint(total, (1,), generator=generator))]
    nearest = torch.full((total,), torch.inf, device=rows.device)  # squared distance to the chosen; −1 for themselves
    pending = list(centres)
    while True:
        _look_again(nearest, rows, norms, pending)
        if len(centres) == count:
            return torch.tensor(sorted(centres))
        pending = _farthest(nearest, rows, norms, min(_CENTRES, count - len(centres)))
        centres += pending


def _projected(features: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    width = features.shape[1]
    if width <= CORESET_WIDTH:
        return features.float()
    projection = torch.randn(width, CORESET_WIDTH, generator=generator).div_(CORESET_WIDTH**0.5).to(features.device)
    rows = torch.empty(len(features), CORESET_WIDTH, device=features.device)
    size = max(1, CHUNK // (4 * width))
    for into, chunk in zip(torch.split(rows, size), torch.split(features, size), strict=True):
        torch.mm(chunk.float(), projection, out=into)
    return rows


def _look_again(nearest: torch.Tensor, rows: torch.Tensor, norms: torch.Tensor, centres: list[int]) -> None:
    """Shrink every row's ``nearest`` to the new centres, in place, in chunks."""
    size = max(1, CHUNK // (4 * len(centres)))
    columns, offsets = rows[centres].T, norms[centres]
    for best, chunk, own in zip(*(torch.split(values, size) for values in (nearest, rows, norms)), strict=True):
        distance = torch.addmm(offsets, chunk, columns, alpha=-2).amin(dim=1).add_(own).clamp_(min=0)
        torch.minimum(best, distance, out=best)
    nearest[centres] = -1


def _farthest(nearest: torch.Tensor, rows: torch.Tensor, norms: torch.Tensor, limit: int) -> list[int]:
    """Choose up to ``limit`` next centres among the farthest rows, as long as no other row can be farther."""
    among = torch.topk(nearest, min(_CANDIDATES, len(nearest)))
    bound = float(among.values[-1]) if len(among.values) < len(nearest) else -1.0
    current, candidates, own = among.values, rows[among.indices], norms[among.indices]
    chosen: list[int] = []
    while len(chosen) < limit:
        at = int(current.argmax())
        if chosen and float(current[at]) < bound:
            break
        chosen.append(at)
        distance = torch.addmv(own, candidates, candidates[at], alpha=-2).add_(own[at]).clamp_(min=0)
        torch.minimum(current, distance, out=current)
        current[at] = -1
    return [int(index) for index in among.indices[chosen]]
