"""Coreset subsampling of a memory bank, as in PatchCore: keep the rows that cover the others."""

from __future__ import annotations

import torch

from aprilcli.errors import OptionError

CHUNK = 8 * 1024**2  # bytes of distances computed at a time
CORESET_WIDTH = 128  # of the random projections used for choosing rows, as in PatchCore
_CANDIDATES = 2048  # farthest rows from which the next centers are chosen before all distances are updated
_CENTERS = 256  # at most, chosen between two updates of all distances


@torch.inference_mode()
def coreset(features: torch.Tensor, fraction: float, seed: int = 0) -> torch.Tensor:
    """Choose rows by greedy k-center: repeatedly the row farthest from those already chosen.

    (Roth et al.: Towards total recall in industrial anomaly detection, 2022, algorithm 1; Gonzalez 1985: the covering
    radius is at most twice the optimal one.) ``features`` [M, Cv]. Returns max(1, round(fraction · M))
    indices [k] int64, ascending; the same for the same ``seed``. Distances are Euclidean. Rows wider than
    ``CORESET_WIDTH`` are projected to that width at random for choosing (Johnson and Lindenstrauss), which preserves a
    distance to within about 6 % (one standard deviation). The first row is drawn at random. Raises OptionError for a
    ``fraction`` outside (0, 1].

    The choice is exactly greedy although all distances are updated only from time to time: they can only shrink, so as
    long as one of the ``_CANDIDATES`` farthest rows is at least as far as the nearest of them was at the last update,
    no other row is farther. Memory beyond ``features``: M · 4 · (``CORESET_WIDTH`` + 2) bytes, and ``CHUNK``.
    """
    if not 0 < fraction <= 1:
        raise OptionError(
            f"the coreset fraction must be above 0 and at most 1, not {fraction}; use a value such as 0.1"
        )
    total = len(features)
    count = max(1, round(fraction * total))
    if count == total:
        return torch.arange(total)
    generator = torch.Generator().manual_seed(seed)
    rows = _projected(features, generator)
    norms = rows.square().sum(dim=1)
    centers = [int(torch.randint(total, (1,), generator=generator))]
    # Squared distance of each row to the nearest chosen row; −1 for the chosen rows.
    nearest = torch.full((total,), torch.inf, device=rows.device)
    pending = list(centers)
    while True:
        _update_distances(nearest, rows, norms, pending)
        if len(centers) == count:
            return torch.tensor(sorted(centers))
        pending = _farthest(nearest, rows, norms, min(_CENTERS, count - len(centers)))
        centers += pending


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


def _update_distances(nearest: torch.Tensor, rows: torch.Tensor, norms: torch.Tensor, centers: list[int]) -> None:
    """Lower ``nearest`` of every row to its distance to the new centers, in place and in chunks."""
    size = max(1, CHUNK // (4 * len(centers)))
    columns, offsets = rows[centers].T, norms[centers]
    for best, chunk, own in zip(*(torch.split(values, size) for values in (nearest, rows, norms)), strict=True):
        distance = torch.addmm(offsets, chunk, columns, alpha=-2).amin(dim=1).add_(own).clamp_(min=0)
        torch.minimum(best, distance, out=best)
    nearest[centers] = -1


def _farthest(nearest: torch.Tensor, rows: torch.Tensor, norms: torch.Tensor, limit: int) -> list[int]:
    """Choose up to ``limit`` next centers among the farthest rows, stopping when another row could be farther."""
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
