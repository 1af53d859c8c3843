"""Coreset subsampling against a slow greedy k-center written from the definition."""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from aprilcli.core.coreset import coreset
from aprilcli.core.memory_bank import unit_rows
from aprilcli.errors import OptionError

coreset_module = importlib.import_module("aprilcli.core.coreset")


def draw_rows(count, width, seed=0):
    """Draw unit rows near a six-dimensional surface, some of them equal."""
    generator = torch.Generator().manual_seed(seed)
    plane, noise = torch.randn(6, width, generator=generator), torch.randn(count, width, generator=generator)
    rows = torch.tanh(torch.randn(count, 6, generator=generator) @ plane) + 0.2 * noise
    rows[count // 2 : count // 2 + 5] = rows[0]
    return unit_rows(rows)


def slow_coreset(rows, count, first):
    """Greedy k-center, one row at a time, in float64."""
    rows = rows.double().numpy()
    centers, nearest = [first], np.full(len(rows), np.inf)
    while True:
        nearest = np.minimum(nearest, np.linalg.norm(rows - rows[centers[-1]], axis=1))
        if len(centers) == count:
            return sorted(centers)
        centers.append(int(nearest.argmax()))


def covering_radius(rows, kept):
    return float(torch.cdist(rows.float(), rows[kept].float()).amin(dim=1).max())


@pytest.mark.parametrize("candidates", [5, 40, 10**6])
@pytest.mark.parametrize("seed", [0, 1])
def test_coreset_is_greedy_k_center(monkeypatch, candidates, seed):
    monkeypatch.setattr(coreset_module, "_CANDIDATES", candidates)
    monkeypatch.setattr(coreset_module, "_CENTERS", 7)
    monkeypatch.setattr(coreset_module, "CHUNK", 4 * 7 * 100)
    rows = draw_rows(900, 32)
    first = int(torch.randint(900, (1,), generator=torch.Generator().manual_seed(seed)))
    kept = coreset(rows, 0.1, seed)
    assert kept.tolist() == slow_coreset(rows, 90, first)


def test_projecting_wide_rows_hardly_increases_the_covering_radius():
    rows = draw_rows(1500, 600)
    kept = coreset(rows.half(), 0.1, seed=0)
    greedy = covering_radius(rows, torch.tensor(slow_coreset(rows, 150, 0)))
    assert covering_radius(rows, kept) < 1.15 * greedy
    drawn = torch.randperm(1500, generator=torch.Generator().manual_seed(0))[:150]
    assert covering_radius(rows, kept) < covering_radius(rows, drawn)


@pytest.mark.parametrize("width", [16, 200])
def test_the_coreset_depends_on_the_seed(width):
    rows = draw_rows(400, width)
    kept = coreset(rows, 0.05, seed=1)
    assert torch.equal(kept, coreset(rows, 0.05, seed=1))
    assert not torch.equal(kept, coreset(rows, 0.05, seed=2))


@pytest.mark.parametrize(("fraction", "count"), [(1.0, 30), (0.5, 15), (1e-6, 1)])
def test_the_coreset_is_the_fraction_of_the_rows_each_once_in_order(fraction, count):
    rows = unit_rows(torch.ones(30, 4))  # all equal, so every distance is 0
    kept = coreset(rows, fraction)
    assert kept.tolist() == sorted(set(kept.tolist()))
    assert len(kept) == count


@pytest.mark.parametrize("fraction", [0, -0.5, 1.01, float("nan")])
def test_a_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(OptionError, match="fraction"):
        coreset(draw_rows(20, 4), fraction)
