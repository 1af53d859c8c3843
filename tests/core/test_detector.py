"""The detector and its banks; its scores are compared with the golden numbers in the tests of the workflows."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from helpers import GoldenCase, inputs

from aprilcli import Detector
from aprilcli.core.memory_bank import MemoryBank, Source, build
from aprilcli.errors import ArtifactError, OptionError


def bank_of(golden: GoldenCase, patches: int | None = None) -> MemoryBank:
    """Make a bank of one random image, with the first ``patches`` of each stage."""
    image = torch.randn(1, 3, golden.image_size, golden.image_size, generator=torch.Generator().manual_seed(0))
    tokens = [stage[:, :patches] for stage in golden.encoder.encode(image).patch_tokens]
    return build([tokens], [Source("a.png", "a")], golden.backbone.spec, "object", dtype=torch.float32)


def test_a_bank_added_later_gives_the_same_scores(golden: GoldenCase) -> None:
    pixels = golden.pixels("query0")
    bank = bank_of(golden)
    plain = golden.detector()
    later, at_once = (
        detector.detect(inputs(pixels))[0] for detector in (plain.with_bank(bank), golden.detector(None, bank))
    )
    assert later.score == at_once.score
    assert (later.anomaly_map == at_once.anomaly_map).all()
    assert plain.bank is None
    assert plain.detect(inputs(pixels))[0].anomaly_map is None


@pytest.mark.parametrize("flaw", ["patches", "object"])
def test_a_bank_that_does_not_fit_is_refused(golden: GoldenCase, flaw: str) -> None:
    bank = bank_of(golden, 3) if flaw == "patches" else replace(bank_of(golden), object_name="bolt")
    with pytest.raises(ArtifactError, match="enroll the part"):
        golden.detector(None, bank)
    with pytest.raises(ArtifactError, match="enroll the part"):
        golden.detector().with_bank(bank)


def test_a_projector_whose_weights_overflow_gives_an_error(golden_vit: GoldenCase) -> None:
    projector = copy.deepcopy(golden_vit.projector)
    projector.fc[0].weight.sign_().mul_(3e38)
    projector.name = "made/by.safetensors"
    with pytest.raises(ArtifactError, match=r"made/by\.safetensors: its weights overflow"):
        golden_vit.detector(projector).detect(inputs(golden_vit.pixels("query0")))


def test_a_huge_object_name_is_wrong_usage(golden_vit: GoldenCase) -> None:
    with pytest.raises(OptionError, match="an object name of 1,000,000 characters; use at most 200"):
        golden_vit.detector(object_name="word " * 200_000)


def test_an_object_name_with_control_characters_is_wrong_usage(golden_vit: GoldenCase) -> None:
    with pytest.raises(OptionError, match=r"object name \\x1b\[31m: "):
        Detector.load(str(golden_vit.folder), object_name="\x1b[31m", device="cpu")
