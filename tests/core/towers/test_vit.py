"""open_clip's ViT with fused attention: the features of its own attention, and PyTorch's settings as they were."""

from __future__ import annotations

import pytest
import torch
from helpers import GoldenCase

from aprilcli.core.towers.base import Tower


@pytest.mark.parametrize("before", [True, False])
def test_fused_attention_gives_the_same_features(golden_vit: GoldenCase, before: bool) -> None:
    tower = golden_vit.encoder.tower
    pixels = torch.randn(1, 3, tower.size, tower.size, generator=torch.Generator().manual_seed(0))
    torch.backends.mha.set_fastpath_enabled(before)
    try:
        with torch.inference_mode():
            features, outputs = tower.encode(pixels, (2, 8))
            theirs, their_outputs = Tower.encode(tower, pixels, (2, 8))
        assert torch.backends.mha.get_fastpath_enabled() == before
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(features, theirs, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(outputs, their_outputs, rtol=1e-5, atol=1e-5)
