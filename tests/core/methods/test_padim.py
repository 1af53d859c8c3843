"""PaDiM against the covariance matrix of each position, inverted as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_features import SPEC, TEXT, WIDTHS, check_method, draw_features, draw_references, joined

from aprilcli.core.methods import padim
from aprilcli.core.methods.padim import Padim
from aprilcli.types import ImageFeatures


@pytest.mark.parametrize("references", [1, 2, 5, 20])
def test_a_loop_from_the_definition(references: int) -> None:
    drawn, features = draw_references(references), draw_features(2, 3)
    method = Padim(SPEC, TEXT)
    method.fit(drawn)
    rows = np.stack([joined(reference, 0, range(3)) for reference in drawn])
    [distances] = method.evidence(features).distances
    for image in range(2):
        patches = joined(features, image, range(3))
        for position, patch in enumerate(patches):
            mean = rows[:, position].mean(axis=0)
            scatter = sum(np.outer(row - mean, row - mean) for row in rows[:, position])
            covariance = scatter / max(1, references - 1) + 0.01 * np.eye(sum(WIDTHS))
            expected = np.sqrt((patch - mean) @ np.linalg.solve(covariance, patch - mean))
            assert distances[image].flatten()[position].item() == pytest.approx(expected, rel=2e-3)


def test_some_channels_are_drawn_by_a_fixed_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(padim, "CHANNELS", 6)
    first, second = Padim(SPEC, TEXT), Padim(SPEC, TEXT)
    assert first._channels.tolist() == second._channels.tolist()
    assert len(set(first._channels.tolist())) == 6
    check_method(lambda: Padim(SPEC, TEXT), 2)


@pytest.mark.parametrize("references", [1, 3])
def test_what_all_methods_do(references: int) -> None:
    check_method(lambda: Padim(SPEC, TEXT), references)


def test_references_that_vary_widely() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = [
        ImageFeatures(torch.ones(1, 7), (1000 * k * torch.randn(1, 4, 200, generator=generator),), ((2, 2),))
        for k in (1, 2, 3)
    ]
    method = Padim(replace(SPEC, stages=(1,), stage_widths=(200,)), TEXT)
    method.fit(drawn)
    # The squared distance of each of K references is (K - 1)² / K, as the 0.01 hardly counts.
    [distances] = method.evidence(drawn[0]).distances
    np.testing.assert_allclose(distances, (4 / 3) ** 0.5, rtol=0.05)
