"""Small banks of random patch tokens: two stages, no model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from aprilcli.core.bank_file import load_bank
from aprilcli.core.memory_bank import Source, build
from aprilcli.errors import ArtifactError
from aprilcli.types import Evidence, ImageEvidence, ModelSpec

WIDTHS = (8, 16)
LENGTHS = (9, 4)


def make_spec(**changes):
    spec = ModelSpec("vit", "tag", "gelu", 42, (2, 4), WIDTHS, 12, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), "f" * 64)
    return replace(spec, **changes)


def draw_tokens(count, seed=0):
    """Draw patch tokens of ``count`` images: a common direction plus noise, as an encoder's tokens have."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        1 + torch.randn(count, n, width, generator=generator) for n, width in zip(LENGTHS, WIDTHS, strict=True)
    )


def make_sources(count, first=0):
    return tuple(Source(f"good/{k}.png", f"{k:064x}") for k in range(first, first + count))


def make_bank(count, seed=0, dtype=torch.float32):
    return build([draw_tokens(count, seed)], make_sources(count), make_spec(), "bolt", dtype=dtype)


def draw_zero_shot(count):
    generator = torch.Generator().manual_seed(3)
    grids = tuple(torch.randn(count, side, side, generator=generator) for side in (3, 2))
    scores = torch.rand(count, generator=generator)
    return tuple(
        ImageEvidence((Evidence(scores[k : k + 1], tuple(grid[k : k + 1] for grid in grids)),)) for k in range(count)
    )


def refusal_of(path):
    """Return why a damaged bank is refused, in one printable line that names it and says what to do."""
    with pytest.raises(ArtifactError) as caught:
        load_bank(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith("; enroll the part again")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 300
    return message
