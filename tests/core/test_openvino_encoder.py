"""The engine openvino against PyTorch, for each kind of image tower, and its models on disk."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import QUERIES, GoldenCase
from timm_models import MODELS, build

from aprilcli.core import openvino_encoder
from aprilcli.core.backbone import TorchImageEncoder
from aprilcli.core.detector import Detector
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.openvino_encoder import OpenVinoImageEncoder
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.quantization import MOST_IMAGES, QuantizationImages
from aprilcli.core.towers import tower_of
from aprilcli.errors import ArtifactError, InputError
from aprilcli.io.images import SourceImage, read_image
from aprilcli.types import ImageFeatures, ModelSpec

SAMPLES = sorted((Path(__file__).parents[1] / "samples").glob("*.png"))
SIZE = 256  # of `tiny`, half the time of its own two sizes


def cosines(features: ImageFeatures, others: ImageFeatures) -> torch.Tensor:
    """Return the cosine of each token of each stage with the other engine's."""
    pairs = zip(features.patch_tokens, others.patch_tokens, strict=True)
    return torch.cat([F.cosine_similarity(mine, theirs, dim=-1).flatten() for mine, theirs in pairs])


def check_equal(encoder: TorchImageEncoder, pixels: np.ndarray) -> None:
    """Compare the engines' tokens, and scores with random text features."""
    other = OpenVinoImageEncoder(encoder)
    expected, found = encoder.encode(pixels), other.encode(pixels)
    assert found.grids == expected.grids == other.grids
    assert cosines(found, expected).min() >= 0.99999
    text = F.normalize(torch.randn(2, encoder.spec.joint_width, generator=torch.Generator().manual_seed(0)), dim=-1)
    scores = [F.softmax(encoder.spec.logit_scale * features.image @ text.T, dim=-1) for features in (found, expected)]
    torch.testing.assert_close(*scores, atol=1e-4, rtol=0)


def test_open_clips_towers_give_the_same_features_and_scores(golden: GoldenCase) -> None:
    check_equal(golden.encoder, torch.cat([golden.pixels(query) for query in QUERIES]).numpy())


@pytest.mark.parametrize("name", MODELS)
def test_timms_towers_give_the_same_features_and_scores(name: str) -> None:
    tower = tower_of(build(MODELS[name]).visual)
    stages = (1, tower.depth // 2, tower.depth)
    spec = ModelSpec(
        backbone=name,
        pretrained="",
        activation="gelu",
        image_size=96,  # not their own
        stages=stages,
        stage_widths=tuple(map(tower.width, stages)),
        joint_width=MODELS[name]["embed_dim"],
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        fingerprint=name,
    )
    assert tower.is_transformer == (name != "convnext")
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).numpy()
    check_equal(TorchImageEncoder(tower, spec, torch.device("cpu")), pixels)


def test_an_image_has_the_same_features_in_any_batch_and_each_size_is_made_once(golden_vit: GoldenCase) -> None:
    encoder = OpenVinoImageEncoder(golden_vit.encoder)
    pixels = torch.cat([golden_vit.pixels(query) for query in QUERIES]).numpy()
    together, alone = encoder.encode(pixels), encoder.encode(pixels[1:2])
    assert all(torch.equal(a[1], b[0]) for a, b in zip(together.patch_tokens, alone.patch_tokens, strict=True))
    assert torch.equal(together.image[1], alone.image[0])
    native = golden_vit.backbone.spec.image_size
    other = encoder.at_size(56)
    assert other.encode(np.zeros((1, 3, 56, 56), np.float32)).grids == other.grids != encoder.grids
    assert encoder.at_size(56) is other
    assert other.at_size(native) is encoder


def test_features_that_are_not_finite_are_refused(golden_vit: GoldenCase) -> None:
    encoder = OpenVinoImageEncoder(golden_vit.encoder)
    with pytest.raises(ArtifactError, match="gives NaN at precision fp32"):
        encoder.encode(np.full((1, 3, 70, 70), np.nan, np.float32))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def test_a_model_is_converted_once_and_again_if_its_file_is_damaged(golden_vit: GoldenCase, cache: Path) -> None:
    pixels = golden_vit.pixels("query0").numpy()

    def encode() -> tuple[ImageFeatures, int]:
        features = OpenVinoImageEncoder(golden_vit.encoder).encode(pixels)
        [weights] = cache.glob("*.bin")
        return features, weights.stat().st_mtime_ns

    first, written = encode()
    second, unchanged = encode()
    assert written == unchanged
    [weights] = cache.glob("*.bin")
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 0x40
    weights.write_bytes(content)
    third, replaced = encode()
    assert replaced != unchanged
    for features in (second, third):
        assert torch.equal(features.image, first.image)
        assert all(torch.equal(a, b) for a, b in zip(features.patch_tokens, first.patch_tokens, strict=True))


def test_without_a_writable_cache_the_model_is_converted_each_time(
    golden_vit: GoldenCase, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"a file, not a folder")
    logging.getLogger("aprilcli").propagate = True
    encoder = OpenVinoImageEncoder(golden_vit.encoder)
    assert encoder.encode(golden_vit.pixels("query0").numpy()).image.isfinite().all()
    assert "the converted model is not kept (APRILCLI_CACHE sets the cache folder)" in caplog.text


def test_other_stages_another_size_and_quantization_are_other_models(golden_vit: GoldenCase) -> None:
    some = load_backbone(str(golden_vit.folder), image_size=70, stages=(2, 8), device="cpu").encoder
    images = QuantizationImages.first_of([read_image(SAMPLES[0])], 70)
    encoder = golden_vit.encoder
    settings = [(encoder, None), (encoder.at_size(56), None), (some, None), (encoder, images)]
    assert len({openvino_encoder._name(*setting) for setting in settings}) == 4


def test_quantization_images_are_the_first_and_the_same_after_they_were_kept() -> None:
    sources = [read_image(path) for path in SAMPLES]
    images = QuantizationImages.first_of(iter(sources * 3), 64)
    assert images.pixels.shape == (MOST_IMAGES, 64, 64, 3)
    again = QuantizationImages.first_of(images.images(), 64)
    assert again.sha256 == images.sha256 == images.describe()["sha256"]
    assert QuantizationImages.first_of(sources, 64).sha256 != images.sha256
    with pytest.raises(InputError, match="no images to quantize the model with"):
        QuantizationImages.first_of([], 64)


@pytest.fixture(scope="module")
def tiny() -> tuple[Detector, list[SourceImage]]:
    backbone = load_backbone("tiny", image_size=SIZE, device="cpu")
    return Detector(backbone.encoder, encode_prompts(backbone.text, "object")), [read_image(path) for path in SAMPLES]


def test_int8_on_tiny_is_close_and_the_same_each_time(
    tiny: tuple[Detector, list[SourceImage]], cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    detector, sources = tiny
    images = QuantizationImages.first_of(sources, SIZE)
    pixels = np.stack([detector.prepare(source).whole[0] for source in sources])
    expected = detector.encoder.encode(pixels)
    found = OpenVinoImageEncoder(detector.encoder, "int8", images).encode(pixels)
    similar = cosines(found, expected)
    assert similar.min() >= 0.9
    assert similar.mean() >= 0.995
    assert F.cosine_similarity(found.image, expected.image, dim=-1).min() >= 0.9
    for path in cache.glob("*"):
        path.unlink()
    again = OpenVinoImageEncoder(detector.encoder, "int8", images).encode(pixels)
    assert all(torch.equal(a, b) for a, b in zip(again.patch_tokens, found.patch_tokens, strict=True))
    assert torch.equal(again.image, found.image)
    assert capfd.readouterr() == ("", "")  # neither logs nor progress bars
