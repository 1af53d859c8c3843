"""The encoder against the authors' numbers, and models and options that are refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import QUERIES, GoldenCase, change_config
from safetensors.torch import load_file, save_file

from aprilcli.core.backbone import TorchImageEncoder, load_backbone
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.towers.vit import VitTower
from aprilcli.errors import ArtifactError, BackboneError, OptionError


def golden_tokens(golden: GoldenCase, query: str, stage: int) -> torch.Tensor:
    """Return [L, Cv]: the ViT cases keep the class token in row 0, the CNN case is [C, h, w]."""
    tokens = golden.numbers[f"{query}/patch_tokens/{stage}"]
    return tokens[1:] if tokens.ndim == 2 else tokens.flatten(1).T


@pytest.mark.parametrize("query", QUERIES)
def test_pixels_are_squashed_as_the_authors_do(golden: GoldenCase, query: str) -> None:
    torch.testing.assert_close(golden.pixels(query)[0], golden.numbers[f"{query}/pixels"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("query", QUERIES)
def test_one_pass_gives_image_features_and_every_stage(golden: GoldenCase, query: str) -> None:
    before = golden.encoder.images_encoded
    features = golden.encoder.encode(golden.pixels(query))
    assert golden.encoder.images_encoded == before + 1
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stages": (2, 4, 6, 9)}, "has 8 stages"),
        ({"stages": (4, 2)}, "ascending order"),
        ({"stages": (0, 2)}, "ascending order"),
        ({"image_size": 60}, "multiple of 14"),
        ({"device": "mps"}, "no such device"),
    ],
)
def test_options_that_do_not_fit_are_refused(golden_vit: GoldenCase, options: dict[str, object], said: str) -> None:
    with pytest.raises(OptionError, match=said):
        load_backbone(str(golden_vit.folder), **{"device": "cpu", **options})  # type: ignore[arg-type]


def test_an_unknown_model_is_named_with_the_available_ones() -> None:
    with pytest.raises(BackboneError, match="unknown model ViT-Z-99"):
        load_backbone("ViT-Z-99")
    with pytest.raises(BackboneError, match=r"no pretrained weights nosuchtag; there are: openai"):
        load_backbone("ViT-L-14-336:nosuchtag")


def test_missing_weights_name_the_model_the_reason_and_three_remedies() -> None:
    with pytest.raises(BackboneError) as caught:
        load_backbone("paper", device="cpu")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("ViT-L-14-336:openai", "copy", "give a model folder", "use the model tiny"):
        assert part in message


def test_broken_folders_are_refused_in_one_line(golden_vit: GoldenCase, tmp_path: Path) -> None:
    def broken(name: str) -> Path:
        return Path(shutil.copytree(golden_vit.folder, tmp_path / name))

    missing = broken("missing")
    (missing / "open_clip_model.safetensors").unlink()
    truncated = broken("truncated")
    weights = (truncated / "open_clip_model.safetensors").read_bytes()
    (truncated / "open_clip_model.safetensors").write_bytes(weights[: len(weights) // 2])
    garbled = broken("garbled")
    (garbled / "open_clip_config.json").write_text("{]")
    other = broken("other")
    config = json.loads((other / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["width"] = 32
    (other / "open_clip_config.json").write_text(json.dumps(config))
    for folder in (missing, truncated, garbled, other):
        with pytest.raises(ArtifactError) as caught:
            load_backbone(str(folder), device="cpu")
        assert folder.name in str(caught.value)
        assert "\n" not in str(caught.value)


def test_nan_weights_are_refused(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "nan"))
    weights = load_file(folder / "open_clip_model.safetensors")
    weights["visual.conv1.weight"][0] = torch.nan
    save_file(weights, folder / "open_clip_model.safetensors")
    with pytest.raises(ArtifactError, match="NaN"):
        load_backbone(str(folder), device="cpu")


def test_a_pickle_under_a_safetensors_name_runs_nothing(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "pickled"))
    witness = tmp_path / "ran"

    class Payload:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(witness),)

    (folder / "open_clip_model.safetensors").write_bytes(pickle.dumps(Payload()))
    with pytest.raises(ArtifactError):
        load_backbone(str(folder), device="cpu")
    assert not witness.exists()


def test_a_folder_named_tiny_is_not_the_embedded_model(golden_vit: GoldenCase, tmp_path: Path) -> None:
    assert load_backbone("tiny", device="cpu").notes
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "tiny"))
    assert load_backbone(str(folder), device="cpu").notes == ()


def test_a_name_longer_than_any_path_is_unknown() -> None:
    with pytest.raises(BackboneError, match="unknown model"):
        load_backbone("y" * 300)


def test_a_huge_image_size_is_wrong_usage(golden_vit: GoldenCase) -> None:
    with pytest.raises(OptionError, match="the largest is 4096"):
        load_backbone(str(golden_vit.folder), image_size=7 * 10**6, device="cpu")


def test_grids_are_those_of_the_features(golden: GoldenCase) -> None:
    assert golden.encoder.grids == golden.encoder.encode(golden.pixels("query0")).grids


def test_a_custom_text_tower_larger_than_its_file_is_refused_before_it_is_built(
    golden_vit: GoldenCase, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "custom"))
    change_config(
        folder, lambda config: (config.update(custom_text=True), config["text_cfg"].update(vocab_size=2 * 10**7))
    )
    with pytest.raises(ArtifactError, match=r"it declares 640,\d+,\d+ weights"):
        load_backbone(str(folder), device="cpu")


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


def test_a_folder_name_with_control_characters_is_refused(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "\x1b[31mred"))
    with pytest.raises(BackboneError, match=r"x1b\[31mred: a model folder's path needs printable UTF-8"):
        load_backbone(str(folder), device="cpu")


class OneLostPatch(VitTower):
    """An image tower whose image feature is finite while a patch is not."""

    def encode(self, pixels: torch.Tensor, stages: tuple[int, ...]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        patches = torch.zeros(len(pixels), 8, 2, 2)
        patches[0, 0, 1, 1] = torch.nan
        return torch.ones(len(pixels), 4), [patches]


def test_patch_tokens_that_are_not_finite_are_refused(golden_vit: GoldenCase) -> None:
    encoder = TorchImageEncoder(OneLostPatch(torch.nn.Module()), golden_vit.backbone.spec, torch.device("cpu"))
    with pytest.raises(ArtifactError, match="gives NaN"):
        encoder.encode(np.zeros((1, 3, 56, 56), np.float32))
