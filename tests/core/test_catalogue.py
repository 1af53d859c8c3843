"""Which models are supported, found out before anything is downloaded."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch
from helpers import GoldenCase
from safetensors.torch import load_file, save_file

from aprilcli.core import catalogue, model_loading, tokenizer
from aprilcli.core.model_loading import load_backbone, load_image_encoder
from aprilcli.errors import AprilError, BackboneError, OptionError
from aprilcli.io.hub import WEIGHT_FILES


@pytest.fixture
def no_download(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Path:
        raise AssertionError("a download")

    monkeypatch.setattr(catalogue, "fetch_clip_weights", refuse)
    monkeypatch.setattr(tokenizer, "fetch_tokenizer", refuse)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("coca_ViT-B-32", "not a pair of an image and a text tower"),
        ("roberta-ViT-B-32", "its text tower roberta-base is built by files of another repository"),
        ("convnext_tiny", "no pretrained weights for convnext_tiny"),
        ("ViT-B-32:nosuchtag", "no pretrained weights nosuchtag"),
    ],
)
def test_unsupported_models_are_refused_before_a_download(model: str, said: str) -> None:
    with pytest.raises(BackboneError, match=said) as caught:
        load_backbone(model, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("no_download")
@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("ViT-B-16", {"image_size": 100}, "image size 100: ViT-B-16 needs a multiple of 16, for example 96"),
        ("RN50", {"image_size": 100}, "image size 100: RN50 needs a multiple of 32, for example 96"),
        ("convnext_base", {"image_size": 100}, "convnext_base needs a multiple of 32"),
        ("PE-Core-T-16-384", {"stages": (12, 13)}, "stages 12,13: PE-Core-T-16-384 has 12 stages"),
        ("MobileCLIP2-S3", {"stages": (5, 6)}, "has 5 stages"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_download(
    model: str, options: dict[str, object], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        load_backbone(model, device="cpu", **options)  # type: ignore[arg-type]


def test_a_tokenizer_that_is_not_here_says_what_to_do() -> None:
    pytest.importorskip("transformers")
    with pytest.raises(BackboneError) as caught:
        load_backbone("ViT-B-16-SigLIP", device="cpu")
    message = str(caught.value)
    assert message.startswith("the tokenizer of ViT-B-16-SigLIP:webli (timm/ViT-B-16-SigLIP): not on this machine")
    assert "run this once on a machine with internet access and copy" in message
    assert "\n" not in message


def test_without_transformers_the_package_to_install_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackboneError, match=r"needs the package transformers; run: pip install 'aprilcli\[transform"):
        load_backbone("ViT-B-16-SigLIP", device="cpu")


@pytest.mark.parametrize(
    ("model", "size", "stages", "mean"),
    [
        ("ViT-SO400M-14-SigLIP-384", 378, (6, 13, 20, 27), 0.5),  # 384 is no multiple of 14
        ("ViT-B-16-SigLIP2", 224, (3, 6, 9, 12), 0.5),
        ("PE-Core-B-16", 224, (3, 6, 9, 12), 0.5),
        ("EVA02-L-14-336", 336, (6, 12, 18, 24), 0.48145466),
        ("MobileCLIP2-S2", 256, (1, 2, 3, 4), 0.0),
        ("convnext_base_w_320", 320, (1, 2, 3, 4), 0.48145466),
        ("paper", 518, (6, 12, 18, 24), 0.48145466),
    ],
)
def test_defaults_are_the_models_own(model: str, size: int, stages: tuple[int, ...], mean: float) -> None:
    source = catalogue.find_source(model)
    config = catalogue.read_source(source)
    assert config.mean[0] == mean
    tower, chosen = model_loading._blueprint(source, config, source.image_sizes)
    assert chosen == (size,)
    assert (source.stages or model_loading._default_stages(tower.depth)) == stages


@pytest.mark.slow
@pytest.mark.parametrize("name", open_clip.list_models())
def test_every_model_of_open_clip_is_supported_or_refused_in_one_line(name: str) -> None:
    with pytest.raises(AprilError) as caught:
        load_backbone(name, device="cpu")
    assert "\n" not in str(caught.value)


def test_few_blocks_are_all_stages() -> None:
    assert model_loading._default_stages(2) == (1, 2)
    assert model_loading._default_stages(5) == (1, 2, 3, 5)


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_a_name_with_its_tag_is_the_same_model_as_the_folder(
    golden_vit: GoldenCase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    config = json.loads((golden_vit.folder / "open_clip_config.json").read_text())["model_cfg"]
    tag = {"hf_hub": "owner/small/", "mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "quick_gelu": True}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "small", {"tag": tag})
    weights = load_file(golden_vit.folder / "open_clip_model.safetensors")
    save_file(weights, tmp_path / file) if file.endswith("safetensors") else torch.save(weights, tmp_path / file)
    asked = []

    def fetch(*arguments: object) -> Path:
        asked.append(arguments)
        return tmp_path / file

    monkeypatch.setattr(catalogue, "fetch_clip_weights", fetch)
    named = load_backbone("small", image_size=golden_vit.image_size, device="cpu")
    assert asked == [("small:tag", "owner/small", WEIGHT_FILES)]
    assert (named.spec.label, named.spec.mean, named.spec.std) == ("small:tag", tag["mean"], tag["std"])
    assert named.notes == ("small:tag was trained with quickgelu but runs with gelu here",)
    pixels = golden_vit.pixels("query0").numpy()
    alone = load_image_encoder("small:tag", named.spec, device="cpu")
    for features in (named.encoder.encode(pixels), alone.encode(pixels)):
        expected = golden_vit.encoder.encode(pixels)
        assert torch.equal(features.image, expected.image)
        assert all(map(torch.equal, features.patch_tokens, expected.patch_tokens))


def test_a_tag_may_name_a_file_of_its_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "fetch_clip_weights", lambda *arguments: arguments)
    source = catalogue.find_source("ViTamin-S")
    expected = ("ViTamin-S:datacomp1b", "jienengchen/ViTamin-S", ("pytorch_model.bin",))
    assert catalogue.weights_file(source) == expected
