"""The image tower loaded alone: the same features, without a text tower, and only from the same weights."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import GoldenCase
from open_clip.transformer import TextTransformer
from safetensors.torch import load_file, save_file
from timm_models import write_model

from aprilcli.core.model_loading import load_backbone, load_image_encoder
from aprilcli.errors import ArtifactError


def assert_same_features(model: str, size: int | None, stages: tuple[int, ...] | None) -> None:
    whole = load_backbone(model, image_size=size, stages=stages, device="cpu").encoder
    alone = load_image_encoder(model, whole.spec, device="cpu")
    pixels = torch.randn(2, 3, whole.spec.image_size, whole.spec.image_size).numpy()
    mine, theirs = alone.encode(pixels), whole.encode(pixels)
    assert (alone.spec, alone.grids, alone.precision) == (whole.spec, whole.grids, whole.precision)
    assert torch.equal(mine.image, theirs.image)
    assert mine.grids == theirs.grids
    assert all(map(torch.equal, mine.patch_tokens, theirs.patch_tokens))


def test_its_features_are_those_of_the_whole_model(golden: GoldenCase) -> None:
    assert_same_features(str(golden.folder), golden.image_size, golden.stages)
    assert_same_features(str(golden.folder), None, None)


@pytest.mark.parametrize("size", [None, 96])
@pytest.mark.parametrize("name", ["convnext", "pe-core"])
def test_its_features_are_those_of_the_whole_model_with_timms_towers(
    tmp_path: Path, name: str, size: int | None
) -> None:
    assert_same_features(str(write_model(tmp_path / name, name)), size, None)


def test_the_text_tower_takes_no_memory(golden_vit: GoldenCase, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    real = TextTransformer.__init__

    def note(self: TextTransformer, *arguments: object, **options: object) -> None:
        real(self, *arguments, **options)
        built.append(self.positional_embedding.device.type)

    monkeypatch.setattr(TextTransformer, "__init__", note)
    load_image_encoder(str(golden_vit.folder), golden_vit.backbone.spec, device="cpu")
    assert set(built) == {"meta"}


@pytest.mark.parametrize("weight", ["visual.proj", "visual.positional_embedding", "text_projection"])
def test_other_weights_are_refused_naming_both(golden_vit: GoldenCase, tmp_path: Path, weight: str) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "golden-vit"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights[weight] += 1
    save_file(weights, folder / "open_clip_model.safetensors")
    spec = golden_vit.backbone.spec
    with pytest.raises(ArtifactError, match=f"fingerprint [0-9a-f]{{12}}, not golden-vit's {spec.fingerprint[:12]}"):
        load_image_encoder(str(folder), spec, device="cpu")
    with pytest.raises(ArtifactError, match="fingerprint"):
        load_image_encoder(str(golden_vit.folder), replace(spec, fingerprint="0" * 64), device="cpu")
