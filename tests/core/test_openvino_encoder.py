"""The engine openvino against PyTorch, for each kind of image tower, and its models on disk."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import QUERIES, GoldenCase
from timm_models import MODELS, SMALL_VIT, build

from aprilcli.core import openvino_encoder
from aprilcli.core.backbone import TorchImageEncoder
from aprilcli.core.detector import Detector
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.openvino_encoder import OpenVinoImageEncoder
from aprilcli.core.projector import load_projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.core.quantization import QuantizationImages
from aprilcli.core.towers import tower_of
from aprilcli.errors import ArtifactError
from aprilcli.io import model_cache
from aprilcli.io.images import read_image, to_pixels
from aprilcli.types import ImageFeatures, ModelSpec

SAMPLES = sorted((Path(__file__).parents[1] / "samples").glob("*.png"))
SIZE = 256  # of `tiny`, half the time of its own two sizes


def cosines(features: ImageFeatures, others: ImageFeatures) -> torch.Tensor:
    """Return the cosine of each token of each stage with the other engine's."""
    pairs = zip(features.patch_tokens, others.patch_tokens, strict=True)
    return torch.cat([F.cosine_similarity(mine, theirs, dim=-1).flatten() for mine, theirs in pairs])


def make_encoder(name: str, config: dict[str, Any], image_size: int) -> TorchImageEncoder:
    """Make an encoder of a model with random weights, with the first, the middle and the last stage."""
    tower = tower_of(build(config).visual)
    stages = tuple(sorted({1, tower.depth // 2, tower.depth}))
    spec = ModelSpec(
        backbone=name,
        pretrained="",
        activation="gelu",
        image_size=image_size,
        stages=stages,
        stage_widths=tuple(map(tower.width, stages)),
        joint_width=config["embed_dim"],
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        fingerprint=name,
    )
    assert tower.is_transformer == (name != "convnext")
    return TorchImageEncoder(tower, spec, torch.device("cpu"))


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


@pytest.mark.parametrize("name", ["convnext", "siglip", pytest.param("pe-core", marks=pytest.mark.slow)])
def test_timms_towers_give_the_same_features_and_scores(name: str) -> None:
    pixels = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0)).numpy()
    check_equal(make_encoder(name, MODELS[name], 96), pixels)  # not their own size


@pytest.fixture(scope="module")
def small() -> TorchImageEncoder:
    return make_encoder("vit", SMALL_VIT, 56)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    """Inputs of 56 pixels, [B, 3, 56, 56]."""
    return np.stack([to_pixels(read_image(path), 56, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)) for path in SAMPLES])


def equal(features: ImageFeatures, others: ImageFeatures) -> bool:
    pairs = zip((features.image, *features.patch_tokens), (others.image, *others.patch_tokens), strict=True)
    return all(torch.equal(mine, theirs) for mine, theirs in pairs)


def test_an_image_has_the_same_features_in_any_batch(small: TorchImageEncoder, pixels: np.ndarray) -> None:
    encoder = OpenVinoImageEncoder(small)
    together, alone = encoder.encode(pixels), encoder.encode(pixels[1:2])
    found = ImageFeatures(together.image[1:2], tuple(rows[1:2] for rows in together.patch_tokens), together.grids)
    assert equal(found, alone)


def test_each_size_is_made_once(small: TorchImageEncoder) -> None:
    encoder = OpenVinoImageEncoder(small)
    other = encoder.at_size(84)
    assert other.encode(np.zeros((1, 3, 84, 84), np.float32)).grids == other.grids == ((6, 6),) * 2
    assert encoder.at_size(84) is other
    assert other.at_size(56) is encoder


def test_features_that_are_not_finite_are_refused(small: TorchImageEncoder) -> None:
    with pytest.raises(ArtifactError, match="gives NaN at precision fp32"):
        OpenVinoImageEncoder(small).encode(np.full((1, 3, 56, 56), np.nan, np.float32))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "openvino"


def test_a_model_is_converted_once_and_again_if_its_file_is_damaged(
    small: TorchImageEncoder, pixels: np.ndarray, cache: Path
) -> None:
    def encode() -> tuple[ImageFeatures, int]:
        features = OpenVinoImageEncoder(small).encode(pixels)
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
    assert equal(second, first)
    assert equal(third, first)


def test_a_kept_file_that_openvino_cannot_read_is_replaced(
    small: TorchImageEncoder, pixels: np.ndarray, cache: Path
) -> None:
    def write(layers: Path, weights: Path) -> None:  # as a full disk may leave it
        layers.write_text("<?xml version=")
        weights.write_bytes(b"")

    with model_cache.claimed_cache():
        model_cache.keep_model(openvino_encoder._name(small, None), write)
    assert OpenVinoImageEncoder(small).encode(pixels).image.isfinite().all()
    [weights] = cache.glob("*.bin")
    assert weights.stat().st_size > 1000


def test_without_a_writable_cache_the_model_is_converted_each_time(
    small: TorchImageEncoder, pixels: np.ndarray, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.parent.mkdir()
    cache.write_bytes(b"a file, not a folder")
    logging.getLogger("aprilcli").propagate = True
    assert OpenVinoImageEncoder(small).encode(pixels).image.isfinite().all()
    assert "the converted model is not kept (APRILCLI_CACHE sets the cache folder)" in caplog.text


def test_other_stages_another_size_and_quantization_are_other_models(small: TorchImageEncoder) -> None:
    some = make_encoder("vit", SMALL_VIT, 56)
    some.spec = replace(some.spec, stages=(2,), stage_widths=(64,))
    images = QuantizationImages.first_of([read_image(SAMPLES[0])], 56)
    settings = [(small, None), (small.at_size(84), None), (some, None), (small, images)]
    assert len({openvino_encoder._name(*setting) for setting in settings}) == 4


def test_int8_of_a_transformer_is_close_the_same_each_time_and_prints_nothing(
    small: TorchImageEncoder, pixels: np.ndarray, cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = QuantizationImages.first_of(map(read_image, SAMPLES), 56)
    found = OpenVinoImageEncoder(small, "int8", images).encode(pixels)
    assert 0.999 <= cosines(found, small.encode(pixels)).min() < 0.99999  # of random weights; measured: 0.9999
    for path in cache.glob("*"):
        path.unlink()
    assert equal(OpenVinoImageEncoder(small, "int8", images).encode(pixels), found)
    printed = capfd.readouterr()
    assert printed.out == ""
    # Neither logs of the libraries nor progress bars; our own note, where a command has set up logging before.
    assert all("converting it for the engine openvino" in line for line in printed.err.splitlines())
    assert "openvino_telemetry" not in sys.modules


@pytest.mark.slow
def test_int8_of_a_convolutional_tower_is_close() -> None:
    encoder = make_encoder("convnext", MODELS["convnext"], 64)
    images = QuantizationImages.first_of(map(read_image, SAMPLES), 64)
    inputs = np.stack([to_pixels(source, 64, encoder.spec.mean, encoder.spec.std) for source in images.images()])
    found = OpenVinoImageEncoder(encoder, "int8", images).encode(inputs)
    assert 0.97 <= cosines(found, encoder.encode(inputs)).min() < 0.99999  # of random weights; measured: 0.991


def test_on_tiny_fp32_is_equal_and_int8_is_close() -> None:
    backbone = load_backbone("tiny", image_size=SIZE, device="cpu")
    text, projector = encode_prompts(backbone.text, "object"), load_projector(None, "tiny", backbone.spec)
    assert isinstance(backbone.encoder, TorchImageEncoder)
    paths = SAMPLES[::2]
    sources = [read_image(path) for path in paths]
    torch_detector = Detector(backbone.encoder, text, projector)
    inputs = [torch_detector.prepare(source) for source in sources]
    pixels = np.stack([prepared.whole[0] for prepared in inputs])
    expected, detections = torch_detector.encoder.encode(pixels), torch_detector.detect(inputs)

    def compare(encoder: OpenVinoImageEncoder) -> tuple[torch.Tensor, list[float], list[float]]:
        found = Detector(encoder, text, projector).detect(inputs)
        pairs = list(zip(found, detections, strict=True))
        scores = [abs(mine.score - theirs.score) for mine, theirs in pairs]
        return cosines(encoder.encode(pixels), expected), scores, [mine.score for mine, _ in pairs]

    similar, differences, _ = compare(OpenVinoImageEncoder(backbone.encoder))
    assert similar.min() >= 0.99999
    assert max(differences) <= 1e-4  # measured: 4e-7
    images = QuantizationImages.first_of(sources, SIZE)
    similar, differences, scores = compare(OpenVinoImageEncoder(backbone.encoder, "int8", images))
    assert similar.min() >= 0.93  # measured: 0.9626, mean 0.998
    assert similar.mean() >= 0.995
    assert max(differences) <= 0.25  # measured: 0.115 (0.161 on all samples); 0.002 on good images
    good = ["good" in path.name for path in paths]
    assert max(score for score, is_good in zip(scores, good, strict=True) if is_good) < min(
        score for score, is_good in zip(scores, good, strict=True) if not is_good
    )
