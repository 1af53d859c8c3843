"""SPADE against loops written from its definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from drawn_features import SPEC, TEXT, check_method, draw_features, draw_references, joined

from aprilcli.core.methods import spade
from aprilcli.core.methods.spade import Spade


@pytest.mark.parametrize(("references", "neighbors"), [(1, 50), (4, 50), (5, 2)])
def test_a_loop_from_the_definition(references: int, neighbors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spade, "NEIGHBORS", neighbors)
    drawn, features = draw_references(references), draw_features(2, 3)
    method = Spade(SPEC, TEXT)
    method.fit(drawn)
    evidence = method.evidence(features)
    for image in range(2):
        apart = [math.dist(features.image[image].tolist(), reference.image[0].tolist()) for reference in drawn]
        nearest = sorted(range(references), key=apart.__getitem__)[:neighbors]
        assert evidence.image_scores[image].item() == pytest.approx(np.mean([apart[k] for k in nearest]), rel=1e-5)
        gallery = np.concatenate([joined(drawn[k], 0, range(3)) for k in nearest])
        expected = [min(math.dist(patch, row) for row in gallery) for patch in joined(features, image, range(3))]
        np.testing.assert_allclose(evidence.distances[0][image].flatten(), expected, atol=1e-4)


@pytest.mark.parametrize("references", [1, 3])
def test_what_all_methods_do(references: int) -> None:
    check_method(lambda: Spade(SPEC, TEXT), references)
