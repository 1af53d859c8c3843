"""PatchCore against loops written from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from drawn_features import SPEC, TEXT, check_method, draw_features, draw_references, resized

from aprilcli.core.coreset import coreset
from aprilcli.core.methods import patchcore
from aprilcli.core.methods.patchcore import PatchCore
from aprilcli.types import ImageFeatures


def local_rows(features: ImageFeatures, image: int) -> np.ndarray:
    """Average the middle stage (of three) over squares of 3 x 3 patches inside the grid."""
    (height, width), tokens = features.grids[1], features.patch_tokens[1][image]
    cells = resized(tokens, (height, width), (height, width))
    rows = []
    for y in range(height):
        for x in range(width):
            around = [cells[i, j] for i in range(height) for j in range(width) if abs(i - y) <= 1 and abs(j - x) <= 1]
            rows.append(np.mean(around, axis=0))
    return np.array(rows)


@pytest.mark.parametrize(("references", "fraction"), [(1, 1.0), (4, 1.0), (4, 0.5), (1, 0.01)])
def test_a_loop_from_the_definition(references: int, fraction: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "FRACTION", fraction)
    drawn, features = draw_references(references), draw_features(2, 3)
    method = PatchCore(SPEC, TEXT)
    method.fit(drawn)
    rows = np.concatenate([local_rows(reference, 0) for reference in drawn])
    bank = rows[coreset(torch.from_numpy(rows).float(), fraction).numpy()]
    evidence = method.evidence(features)
    for image in range(2):
        distances, nearest = [], []
        patches = local_rows(features, image)
        for patch in patches:
            each = [math.dist(patch, row) for row in bank]
            distances.append(min(each))
            nearest.append(int(np.argmin(each)))
        np.testing.assert_allclose(evidence.distances[0][image].flatten(), distances, atol=1e-4)
        farthest = int(np.argmax(distances))
        own = bank[nearest[farthest]]
        near = sorted(range(len(bank)), key=lambda k: math.dist(bank[k], own))[:9]
        total = sum(math.exp(math.dist(patches[farthest], bank[k])) for k in near)
        weight = 1 - math.exp(distances[farthest]) / total if len(bank) > 1 else 1
        assert evidence.image_scores[image].item() == pytest.approx(distances[farthest] * weight, rel=1e-4)


def test_two_middle_stages_are_joined() -> None:
    features = draw_features(1, 2)
    four = ImageFeatures(features.image, (*features.patch_tokens, features.patch_tokens[0]), (*features.grids, (6, 6)))
    rows, grid = patchcore._local_features(four)
    assert (rows.shape, grid) == ((1, 9, 11), (3, 3))


def test_a_coreset_keeps_a_tenth() -> None:
    method = PatchCore(SPEC, TEXT)
    method.fit(draw_references(10))
    assert len(method._rows) == 9


@pytest.mark.parametrize("references", [1, 3])
def test_what_all_methods_do(references: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patchcore, "FRACTION", 1.0)
    check_method(lambda: PatchCore(SPEC, TEXT), references)
