"""The encoders against the authors' numbers, and features that are not finite."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUERIES, GoldenCase
from safetensors.torch import load_file, save_file

from aprilcli.core.backbone import TorchImageEncoder
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.towers.vit import VitTower
from aprilcli.errors import ArtifactError


def golden_tokens(golden: GoldenCase, query: str, stage: int) -> torch.Tensor:
    """Return [L, Cv]: the ViT cases keep the class token in row 0, the CNN case is [C, h, w]."""
    tokens = golden.numbers[f"{query}/patch_tokens/{stage}"]
    return tokens[1:] if tokens.ndim == 2 else tokens.flatten(1).T


@pytest.mark.parametrize("query", QUERIES)
def test_pixels_are_squashed_as_the_authors_do(golden: GoldenCase, query: str) -> None:
    torch.testing.assert_close(golden.pixels(query)[0], golden.numbers[f"{query}/pixels"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", QUERIES)
def test_one_pass_gives_image_features_and_every_stage(golden: GoldenCase, query: str) -> None:
    features = golden.encoder.encode(golden.pixels(query))
    torch.testing.assert_close(features.image[0], golden.numbers[f"{query}/image_features"], atol=1e-5, rtol=0)
    for stage, tokens in enumerate(features.patch_tokens):
        torch.testing.assert_close(tokens[0], golden_tokens(golden, query, stage), atol=1e-5, rtol=1e-5)


def test_fewer_stages_of_a_tower_are_the_same_stages(golden: GoldenCase) -> None:
    some = golden.stages[1:3]
    part = load_backbone(str(golden.folder), image_size=golden.image_size, stages=some, device="cpu")
    features = part.encoder.encode(golden.pixels("query0"))
    for offset, tokens in enumerate(features.patch_tokens):
        torch.testing.assert_close(tokens[0], golden_tokens(golden, "query0", offset + 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.image[0], golden.numbers["query0/image_features"], atol=1e-5, rtol=0)


def test_activation_and_widths_are_recorded(golden: GoldenCase) -> None:
    spec = golden.backbone.spec
    assert spec.activation == ("quickgelu" if "quickgelu" in golden.folder.name else "gelu")
    assert spec.stage_widths == ((64, 128, 256, 512) if "rn" in golden.folder.name else (64, 64, 64, 64))
    assert spec.joint_width == 48


def test_a_batch_gives_the_features_of_each_image_alone(golden: GoldenCase) -> None:
    images = [golden.pixels(query) for query in QUERIES]
    together = golden.encoder.encode(torch.cat(images))
    for index, image in enumerate(images):
        alone = golden.encoder.encode(image)
        torch.testing.assert_close(together.image[index], alone.image[0], atol=1e-6, rtol=0)
        for mine, theirs in zip(together.patch_tokens, alone.patch_tokens, strict=True):
            torch.testing.assert_close(mine[index], theirs[0], atol=1e-5, rtol=1e-5)


def test_grids_are_those_of_the_features(golden: GoldenCase) -> None:
    assert golden.encoder.grids == golden.encoder.encode(golden.pixels("query0")).grids


@pytest.mark.parametrize("harmed", ["visual.conv1.weight", "token_embedding.weight"])
def test_finite_weights_that_overflow_give_an_error(golden_vit: GoldenCase, tmp_path: Path, harmed: str) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "overflow"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights[harmed] = weights[harmed].sign() * 3e38
    save_file(weights, folder / "open_clip_model.safetensors")
    backbone = load_backbone(str(folder), device="cpu")
    pixels = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ArtifactError, match="overflow: this model gives NaN at precision fp32"):
        backbone.encoder.encode(pixels) if harmed.startswith("visual") else encode_prompts(backbone.text, "bolt")


class OneLostPatch(VitTower):
    """An image tower whose image feature is finite while a patch is not."""

    def at_size(self, size: int) -> VitTower:
        return self

    def encode(self, pixels: torch.Tensor, stages: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        patches = torch.zeros(len(pixels), 8, 2, 2)
        patches[0, 0, 1, 1] = torch.nan
        return torch.ones(len(pixels), 4), [patches]


def test_patch_tokens_that_are_not_finite_are_refused(golden_vit: GoldenCase) -> None:
    encoder = TorchImageEncoder(OneLostPatch(torch.nn.Module()), golden_vit.backbone.spec, torch.device("cpu"))
    with pytest.raises(ArtifactError, match="gives NaN"):
        encoder.encode(np.zeros((1, 3, 56, 56), np.float32))
