"""Towers of timm against open_clip's own passes: tokens, features, widths and grids, at any size."""

from __future__ import annotations

import pytest
import timm
import torch
from open_clip.timm_model import TimmModel
from timm_models import MODELS, build

from aprilcli.core.towers import tower_of
from aprilcli.core.towers.timm import TimmTower

# Trunk, pool, projection: classes, registers, rotary positions; 4 and 5 convolutional stages.
TRUNKS = {
    "eva02_tiny_patch14_224": ("token", None),
    "vit_tiny_patch16_dinov3_qkvb": ("avg", "linear"),
    "vit_pe_core_tiny_patch16_384": ("map", None),
    "test_vit": ("token", "linear"),
    "test_vit2": ("avg", "mlp"),
    "test_convnext": ("", "linear"),
    "test_resnet": ("", "linear"),
    "fastvit_t8": ("avg", None),
}


def make_tower(trunk: str) -> TimmTower:
    torch.manual_seed(0)
    pool, proj = TRUNKS[trunk]
    tower = tower_of(TimmModel(trunk, 32, pool=pool, proj=proj))
    assert isinstance(tower, TimmTower)
    tower.place(torch.device("cpu"))
    return tower


@pytest.mark.parametrize("trunk", TRUNKS)
@torch.inference_mode()
def test_stages_and_features_are_those_of_open_clip(trunk: str) -> None:
    tower = make_tower(trunk)
    for factor in (2, 3):
        size = factor * tower.step
        tower.resize(size)
        pixels = torch.randn(2, 3, size, size)
        stages = tuple(range(1, tower.depth + 1))
        features, outputs = tower.encode(pixels, stages)
        intermediates = tower.visual.forward_intermediates(pixels)["image_intermediates"]
        torch.testing.assert_close(features, tower.visual(pixels), atol=1e-5, rtol=1e-5)
        for stage, tokens, expected in zip(stages, outputs, intermediates, strict=True):
            assert torch.equal(tokens, expected)
            assert tokens.shape == (2, tower.width(stage), *tower.grid(stage))
        last, (some,) = tower.encode(pixels, (2,))
        assert torch.equal(some, outputs[1])
        assert torch.equal(last, features)


def test_a_class_token_is_no_patch() -> None:
    tower = make_tower("vit_tiny_patch16_dinov3_qkvb")
    tower.resize(64)
    _, (tokens,) = tower.encode(torch.randn(1, 3, 64, 64), (1,))
    assert tower.visual.trunk.num_prefix_tokens == 5
    assert tokens.shape == (1, 192, 4, 4)


def test_only_positions_that_timm_resizes_take_other_sizes() -> None:
    assert make_tower("test_vit").only_size is None
    assert make_tower("test_convnext").only_size is None
    with torch.device("meta"):
        tower = tower_of(TimmModel("test_vit_relpos", 32, pool="avg", proj="linear"))
    assert tower.only_size == 160


@pytest.mark.parametrize(
    ("trunk", "said"),
    [("naflexvit_base_patch16_gap", "variable resolution"), ("test_mambaout", "output of its stages")],
)
def test_trunks_without_square_grids_are_refused(trunk: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        visual = TimmModel(trunk, 32, pool="avg", proj="linear")
    monkeypatch.delattr(type(visual.trunk), "forward_intermediates", raising=False)
    with pytest.raises(ValueError, match=said):
        tower_of(visual)


def test_other_modules_are_refused() -> None:
    with pytest.raises(ValueError, match="Linear is not a supported image tower"):
        tower_of(torch.nn.Linear(2, 2))


def test_the_small_models_of_these_tests_are_of_all_kinds() -> None:
    kinds = {name: build(config).visual.trunk for name, config in MODELS.items()}
    assert isinstance(kinds["convnext"], timm.models.ConvNeXt)
    assert isinstance(kinds["siglip"], timm.models.VisionTransformer)
    assert kinds["siglip"].cls_token is None
    assert isinstance(kinds["pe-core"], timm.models.Eva)
    assert kinds["pe-core"].cls_token is not None
