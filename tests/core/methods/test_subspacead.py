"""SubspaceAD against principal components found by singular values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_features import (
    GRIDS,
    SIZE,
    SPEC,
    TEXT,
    check_half_precision,
    check_images_are_independent,
    draw_features,
    draw_references,
)

from aprilcli.core.fusion import fuse
from aprilcli.core.methods.subspacead import SubspaceAd
from aprilcli.types import ImageFeatures


@pytest.mark.parametrize("references", [1, 6])
def test_a_loop_from_the_definition(references: int) -> None:
    drawn, features = draw_references(references), draw_features(2, 3)
    for tokens in (stage for each in (*drawn, features) for stage in each.patch_tokens):
        tokens[:, :, 0] *= 0.1  # less than 1 % of the variance
    method = SubspaceAd(SPEC, TEXT)
    method.fit(drawn)
    evidence = method.evidence(features)
    for stage, residuals in enumerate(evidence.distances):
        rows = np.concatenate([reference.patch_tokens[stage][0].numpy().astype(np.float64) for reference in drawn])
        mean = rows.mean(axis=0)
        _, singular, directions = np.linalg.svd(rows - mean, full_matrices=False)
        explained = np.cumsum(singular**2) / np.sum(singular**2)
        kept = directions[: int(np.argmax(explained >= 0.99)) + 1]
        assert len(kept) < rows.shape[1]
        for image in range(2):
            for position, patch in enumerate(features.patch_tokens[stage][image].numpy()):
                rest = patch - mean - kept.T @ (kept @ (patch - mean))
                got = residuals[image].flatten()[position].item()
                assert got == pytest.approx(rest @ rest, rel=1e-3, abs=1e-4)


def test_stages_of_one_grid_and_width_are_averaged() -> None:
    features = draw_features(1, 2)
    same = ImageFeatures(features.image, (features.patch_tokens[0], -features.patch_tokens[0]), (GRIDS[0], GRIDS[0]))
    method = SubspaceAd(SPEC, TEXT)
    method.fit([same])
    [residuals] = method.evidence(same).distances  # of the mean, which is zero
    assert residuals.abs().max() == 0


def test_the_score_is_the_mean_of_the_top_of_the_map() -> None:
    method = SubspaceAd(SPEC, TEXT)
    method.fit(draw_references(1))
    [detection] = fuse(method, method.evidence(draw_features(1, 3)))
    top = np.sort(detection.anomaly_map.flatten())[-int(np.ceil(0.01 * SIZE**2)) :]
    assert detection.score == pytest.approx(top.mean(), rel=1e-5)
    assert torch.tensor(detection.map_max) >= detection.score


@pytest.mark.parametrize("references", [1, 3])
def test_images_and_precisions(references: int) -> None:
    check_images_are_independent(lambda: SubspaceAd(SPEC, TEXT), references)
    check_half_precision(lambda: SubspaceAd(SPEC, TEXT), references)


def test_a_constant_reference_has_no_components() -> None:
    features = draw_features(1, 2)
    constant = ImageFeatures(features.image, tuple(t[:, :1].expand_as(t) for t in features.patch_tokens), GRIDS)
    method = SubspaceAd(SPEC, TEXT)
    method.fit([constant])
    assert [components.shape[1] for _, components in method._subspaces] == [0, 0, 0]
    assert all((residuals > 0).all() for residuals in method.evidence(draw_features(1, 3)).distances)
