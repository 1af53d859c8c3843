"""Features drawn at random, of three stages with different grids and widths, and what all methods must do."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from aprilcli.core.fusion import fuse
from aprilcli.core.methods import Method
from aprilcli.types import ImageFeatures, ModelSpec

GRIDS = ((6, 6), (3, 3), (3, 3))
WIDTHS = (4, 6, 5)
SIZE = 12
SPEC = ModelSpec("m", "", "gelu", SIZE, (1, 2, 3), WIDTHS, 7, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "")
TEXT = F.normalize(torch.randn(2, 7, generator=torch.Generator().manual_seed(9)), dim=1)


def draw_features(count: int, seed: int, scale: float = 3.0) -> ImageFeatures:
    """Draw the features of ``count`` images."""
    generator = torch.Generator().manual_seed(seed)
    image = F.normalize(torch.randn(count, 7, generator=generator), dim=1)
    sizes = zip(GRIDS, WIDTHS, strict=True)
    tokens = [scale * torch.randn(count, h * w, width, generator=generator) for (h, w), width in sizes]
    return ImageFeatures(image, tuple(tokens), GRIDS)


def draw_references(count: int, seed: int = 1) -> list[ImageFeatures]:
    """Draw the features of single images."""
    return [draw_features(1, 100 * seed + k) for k in range(count)]


def resized(tokens: torch.Tensor, grid: tuple[int, int], to: tuple[int, int]) -> np.ndarray:
    """Resize the tokens of an image [L, C] to [h', w', C], bilinearly, cell by cell."""
    cells = tokens.reshape(*grid, -1).numpy().astype(np.float64)
    out = np.zeros((*to, cells.shape[2]))
    for row in range(to[0]):
        for column in range(to[1]):
            y, x = ((at + 0.5) * n / t - 0.5 for at, n, t in zip((row, column), grid, to, strict=True))
            for i in range(grid[0]):
                for j in range(grid[1]):
                    inside = (np.clip(at, 0, side - 1) for at, side in zip((y, x), grid, strict=True))
                    down, right = (max(0, 1 - abs(at - n)) for at, n in zip(inside, (i, j), strict=True))
                    weight = down * right
                    out[row, column] += weight * cells[i, j]
    return out


def joined(features: ImageFeatures, image: int, stages: Sequence[int]) -> np.ndarray:
    """Join the stages of an image on the finest of their grids: [L, C]."""
    finest = max(features.grids[stage] for stage in stages)
    cells = [resized(features.patch_tokens[stage][image], features.grids[stage], finest) for stage in stages]
    return np.concatenate(cells, axis=2).reshape(finest[0] * finest[1], -1)


def check_method(make: Callable[[], Method], references: int) -> None:
    """Check what holds for every method that compares patches with those of the references."""
    check_images_are_independent(make, references)
    check_half_precision(make, references)
    method, features = make(), draw_features(3, 5)
    method.fit([features[:1]])  # replaces what was learned; the same image is not anomalous
    [same, *others] = fuse(method, method.evidence(features))
    assert same.map_max < min(detection.map_max for detection in others) / 4
    assert same.score <= min(detection.score for detection in others)
    constant = ImageFeatures(features.image[:1], tuple(torch.ones_like(t[:1]) for t in features.patch_tokens), GRIDS)
    method.fit([constant])
    for detection in fuse(method, method.evidence(constant)):
        assert np.isfinite(detection.anomaly_map).all()
        assert detection.map_max < 1e-3
        assert np.isfinite(detection.score)


def check_images_are_independent(make: Callable[[], Method], references: int) -> None:
    """Check that the results of an image are the same, to the bit, alone and among others."""
    method, features = make(), draw_features(3, 5)
    method.fit(draw_references(references))
    for k, detection in enumerate(fuse(method, method.evidence(features))):
        [alone] = fuse(method, method.evidence(features[k : k + 1]))
        np.testing.assert_array_equal(alone.anomaly_map, detection.anomaly_map)
        assert (alone.score, alone.text_score) == (detection.score, detection.text_score)
        assert detection.anomaly_map.shape == (SIZE, SIZE)
        assert np.isfinite(detection.anomaly_map).all()


def check_half_precision(make: Callable[[], Method], references: int) -> None:
    """Check that float16 features give the results of these values in float32, and that references may be batches."""
    method, features = make(), in_half_precision(draw_features(2, 5))
    drawn = [in_half_precision(each) for each in draw_references(references)]
    method.fit([ImageFeatures.concatenate(drawn)])
    half = fuse(method, method.evidence(features))
    method.fit([in_single_precision(each) for each in drawn])
    for one, other in zip(half, fuse(method, method.evidence(in_single_precision(features))), strict=True):
        np.testing.assert_allclose(one.anomaly_map, other.anomaly_map, rtol=1e-4, atol=1e-6)
        assert abs(one.score - other.score) <= 1e-4 * abs(other.score) + 1e-6


def in_single_precision(features: ImageFeatures) -> ImageFeatures:
    """Return the features in float32."""
    return ImageFeatures(features.image.float(), tuple(tokens.float() for tokens in features.patch_tokens), GRIDS)


def in_half_precision(features: ImageFeatures) -> ImageFeatures:
    """Return the features in float16."""
    return ImageFeatures(features.image.half(), tuple(tokens.half() for tokens in features.patch_tokens), GRIDS)
