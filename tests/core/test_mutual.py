"""Mutual scoring against the numbers of its authors' modules, and against loops written from the definition."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from helpers import GOLDEN
from safetensors.torch import load_file

from aprilcli.core import mutual

GRID = (6, 6)


@pytest.fixture(scope="module")
def musc() -> dict[str, torch.Tensor]:
    return load_file(GOLDEN / "musc.safetensors")


def test_the_authors_numbers(musc: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mutual, "PAIRED_BYTES", 3 * 4 * 36 * 36)  # blocks of three images
    stages = [musc[f"patch_tokens.{number}"] for number in range(1, 5)]
    for side in (1, 3, 5):
        aggregated = torch.stack([mutual.aggregate(tokens, GRID, side) for tokens in stages])
        torch.testing.assert_close(aggregated, musc[f"aggregated.r{side}"], atol=1e-6, rtol=0)
    scores = [mutual.stage_scores(tokens, 8, GRID) for tokens in stages]
    mean = torch.stack(scores).mean(dim=0).flatten(1)
    torch.testing.assert_close(mean, musc["patch_scores"].float(), atol=1e-6, rtol=0)
    maps = torch.stack([mutual.mutual_map([stage[image] for stage in scores], 48) for image in range(8)])
    torch.testing.assert_close(maps, musc["maps"].float(), atol=1e-6, rtol=0)
    maxima = maps.flatten(1).amax(dim=1)
    torch.testing.assert_close(maxima, musc["image_scores"].float(), atol=1e-6, rtol=0)
    smoothed = mutual.smoothed_scores(maxima, musc["image_features"])
    torch.testing.assert_close(smoothed, musc["image_scores.rscin"], atol=1e-6, rtol=0)


def slow_scores(tokens: torch.Tensor, scored: int, grid: tuple[int, int]) -> list[list[float]]:
    """Compute patch scores patch by patch."""
    totals = [[0.0] * (grid[0] * grid[1]) for _ in range(scored)]
    for side in (1, 3, 5):
        rows = mutual.aggregate(tokens, grid, side)
        for image in range(scored):
            for patch in range(len(rows[image])):
                others: Sequence[float] = [
                    min(math.dist(rows[image, patch].tolist(), row.tolist()) for row in rows[other])
                    for other in range(len(tokens))
                    if other != image
                ]
                lowest = sorted(others)[: max(1, int(0.3 * len(others)))]
                totals[image][patch] += sum(lowest) / len(lowest) / 3
    return totals


@pytest.mark.parametrize(("scored", "references"), [(7, 0), (3, 4), (2, 0)])
def test_a_loop_from_the_definition(scored: int, references: int) -> None:
    tokens = torch.randn(scored + references, 6, 4, generator=torch.Generator().manual_seed(1))
    expected = torch.tensor(slow_scores(tokens, scored, (2, 3)))
    actual = mutual.stage_scores(tokens, scored, (2, 3))
    torch.testing.assert_close(actual.flatten(1), expected, atol=1e-5, rtol=0)


def test_an_odd_patch_has_the_highest_score_and_references_lower_that_of_one_like_theirs() -> None:
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(1, 36, 8, generator=generator) + 0.1 * torch.randn(10, 36, 8, generator=generator)
    tokens[4, 20] = 5 * torch.randn(8, generator=generator)
    alone = mutual.stage_scores(tokens, 10, GRID)
    assert alone.flatten(1).amax(dim=1).argmax() == 4
    known = torch.cat([tokens, tokens[4:5].expand(5, -1, -1)])
    assert mutual.stage_scores(known, 10, GRID)[4].max() < 0.5 * alone[4].max()


def test_equal_scores_stay_equal_when_smoothed() -> None:
    features = torch.nn.functional.normalize(torch.rand(5, 3), dim=1)
    assert mutual.smoothed_scores(torch.full((5,), 0.7), features).tolist() == [0.0] * 5
