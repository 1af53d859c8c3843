"""Mutual scoring: the images of a folder score each other, without references (MuSc; Li, Huang, Xue, Zhou: ICLR 2024).

A patch is anomalous if few other images have a similar patch. Of each image and stage, patch tokens are normalized and
averaged over neighborhoods of three sizes. The distance of a patch to another image is that to its most similar patch;
its score is the mean of the lowest 30 % of its distances to all other images, averaged over sizes and stages.

Scores depend on the other images. N images, L = h·w patches of a stage, C its width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F

from aprilcli.core.maps import upsample

NEIGHBORHOODS = (1, 3, 5)  # sides of the squares of patches that tokens are averaged over
LOWEST_SHARE = 0.3  # of the distances to the other images
EPS = 1e-5  # of the normalization
NEIGHBORS = (1, 2, 3)  # images whose scores are averaged with an image's own
PAIRED_BYTES = 2**22  # of cosines computed at a time, so that they stay in the processor's cache
PAIRED_BYTES_GPU = 2**28


@torch.inference_mode()
def aggregate(tokens: torch.Tensor, grid: tuple[int, int], side: int) -> torch.Tensor:
    """Return tokens averaged over squares of ``side`` x ``side`` patches, as unit rows: [B, L, C] float32.

    Each image's tokens are normalized first, over patches and channels. Beyond the edge, tokens count as zeros.
    """
    count, _, width = tokens.shape
    cells = tokens.float().transpose(1, 2).reshape(count, width, *grid)
    cells = F.layer_norm(cells, cells.shape[1:], eps=EPS)
    if side > 1:
        cells = F.avg_pool2d(cells, side, stride=1, padding=side // 2, count_include_pad=True)
    return F.normalize(cells.flatten(2).transpose(1, 2), dim=-1).contiguous()


@torch.inference_mode()
def stage_scores(tokens: torch.Tensor, scored: int, grid: tuple[int, int]) -> torch.Tensor:
    """Return the scores of the patches of a stage, [N, h, w] in [0, 2].

    ``tokens``: [N + M, L, C]. ``scored``: N; the first N images are scored, and compared with the M others, too.

    Memory: the tokens of all images twice in float32, and N · L distances to each of them.
    """
    total = torch.zeros(scored, grid[0] * grid[1], device=tokens.device)
    for side in NEIGHBORHOODS:
        total += _lowest_mean(_distances(aggregate(tokens, grid, side), scored))
    return (total / len(NEIGHBORHOODS)).reshape(scored, *grid)


def _distances(rows: torch.Tensor, scored: int) -> torch.Tensor:
    """Return the distance of each patch of the ``scored`` first images to every other image, [N, L, N + M - 1]."""
    images, patches, _ = rows.shape
    cosines = rows.new_empty(scored, patches, images - 1)
    limit = PAIRED_BYTES if rows.device.type == "cpu" else PAIRED_BYTES_GPU
    step = max(1, limit // (4 * patches * patches))
    for image in range(scored):
        for first in range(image + 1, images, step):
            others = rows[first : first + step]
            pairs = (rows[image] @ others.flatten(0, 1).T).reshape(patches, len(others), patches)
            # Both ways at once. Position 0 of an image's distances is that of image 0, or of image 1 for image 0.
            cosines[image, :, first - 1 : first - 1 + len(others)] = pairs.amax(dim=2)
            compared = min(first + len(others), scored) - first
            if compared > 0:
                cosines[first : first + compared, :, image] = pairs.amax(dim=0)[:compared]
    return (2 - 2 * cosines.clamp_(-1, 1)).sqrt_()


def _lowest_mean(distances: torch.Tensor) -> torch.Tensor:
    lowest = max(1, math.floor(LOWEST_SHARE * distances.shape[-1]))
    return distances.topk(lowest, dim=-1, largest=False).values.mean(dim=-1)


@torch.inference_mode()
def mutual_map(stages: Sequence[torch.Tensor], image_size: int) -> torch.Tensor:
    """Return the map of an image, [S, S]: the mean of its stages' scores [h, w], resized with aligned corners."""
    return torch.cat([upsample(stage[None], image_size) for stage in stages]).mean(dim=0)


@torch.inference_mode()
def smoothed_scores(scores: torch.Tensor, image_features: torch.Tensor, *, scaled: bool = True) -> torch.Tensor:
    """Return image scores [N], scaled to [0, 1] over the folder and averaged with those of similar images (RsCIN).

    ``scaled``: scaling changes neither order nor p-values within a folder; without it, folders can be compared.
    ``image_features``: [N, C] unit rows. For k nearest images, an image itself included, scores are weighted by the
    cosines; then the mean over all k of ``NEIGHBORS``.
    """
    if scaled:
        spread = scores.max() - scores.min()
        scores = (scores - scores.min()) / (spread if spread > 0 else 1)
    weights, neighbors = (image_features @ image_features.T).topk(min(max(NEIGHBORS), len(scores)), dim=1)
    means = []
    for count in NEIGHBORS:
        nearest = weights[:, :count]
        means.append((nearest * scores[neighbors[:, :count]]).sum(dim=1) / nearest.sum(dim=1))
    return torch.stack(means).mean(dim=0)
