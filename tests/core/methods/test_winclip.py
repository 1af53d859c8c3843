"""WinCLIP and WinCLIP+ against loops written from their definition."""

from __future__ import annotations

import math
from statistics import fmean, harmonic_mean

import pytest
import torch
import torch.nn.functional as F
from drawn_features import GRIDS, SPEC, TEXT, draw_features

from aprilcli.core import maps
from aprilcli.core.fusion import fuse
from aprilcli.core.methods.winclip import WinClip
from aprilcli.types import WINDOWS, ImageFeatures

SIDE = GRIDS[-1][0]


def draw(count: int, seed: int) -> ImageFeatures:
    """Draw features with those of windows."""
    features = draw_features(count, seed)
    generator = torch.Generator().manual_seed(seed + 1000)
    sizes = [(count, SIDE - side + 1, SIDE - side + 1, 7) for side in WINDOWS]
    windows = tuple(F.normalize(torch.randn(size, generator=generator), dim=-1) for size in sizes)
    return ImageFeatures(features.image, features.patch_tokens, features.grids, windows)


def text_score(row: torch.Tensor) -> float:
    normal, anomalous = (100 * float(row @ text) for text in TEXT)
    return 1 / (1 + math.exp(normal - anomalous))


def covering(row: int, column: int, side: int) -> list[tuple[int, int]]:
    """Return the windows that cover a patch."""
    starts = range(SIDE - side + 1)
    return [(i, j) for i in starts for j in starts if i <= row < i + side and j <= column < j + side]


@pytest.mark.parametrize("references", [0, 1, 3])
def test_a_loop_from_the_definition(references: int) -> None:
    features, known = draw(2, 3), [draw(1, 50 + k) for k in range(references)]
    method = WinClip(SPEC, TEXT)
    if known:
        method.fit(known)
    evidence = method.evidence(features)
    for image in range(2):
        own = text_score(features.image[image])
        grid = torch.zeros(SIDE, SIDE)
        for row in range(SIDE):
            for column in range(SIDE):
                by_side, near = [], []
                for windows, side in zip(features.windows, WINDOWS, strict=True):
                    covers = [windows[image, i, j] for i, j in covering(row, column, side)]
                    by_side.append(harmonic_mean([text_score(window) for window in covers]))
                    if known:
                        rows = torch.cat([k.windows[WINDOWS.index(side)].flatten(0, 2) for k in known])
                        near.append(harmonic_mean([(1 - float((rows @ window).max())) / 2 for window in covers]))
                expected = harmonic_mean([*by_side, own])
                assert float(evidence.logits[0][image, row, column]) == pytest.approx(expected, rel=1e-3, abs=1e-6)
                if known:
                    patch = F.normalize(features.patch_tokens[-1][image, row * SIDE + column], dim=0)
                    rows = torch.cat([F.normalize(k.patch_tokens[-1][0], dim=1) for k in known])
                    grid[row, column] = fmean([*near, (1 - float((rows @ patch).max())) / 2])
        [detection] = fuse(method, evidence[image : image + 1])
        if known:
            torch.testing.assert_close(evidence.distances[0][image], grid, atol=1e-5, rtol=1e-4)
            assert detection.score == pytest.approx((own + float(grid.max())) / 2, rel=1e-4)
        else:
            assert evidence.distances == ()
            assert detection.score == pytest.approx(own, rel=1e-4)
        upsampled = [
            maps.upsample(g[image : image + 1], SPEC.image_size) for g in (*evidence.logits, *evidence.distances)
        ]
        torch.testing.assert_close(torch.from_numpy(detection.anomaly_map), sum(upsampled)[0])


def test_the_same_image_as_a_reference_is_at_distance_zero() -> None:
    features = draw(2, 3)
    method = WinClip(SPEC, TEXT)
    method.fit([features[:1]])
    evidence = method.evidence(features)
    assert evidence.image_scores[0] < 1e-3 < evidence.image_scores[1]


def test_a_grid_without_windows_has_the_image_and_its_patches_alone() -> None:
    features = draw_features(1, 3)
    method = WinClip(SPEC, TEXT)
    own = text_score(features.image[0])
    torch.testing.assert_close(method.evidence(features).logits[0], torch.full((1, SIDE, SIDE), own))
    method.fit([draw_features(1, 4)])
    assert method.evidence(features).distances[0].shape == (1, SIDE, SIDE)
