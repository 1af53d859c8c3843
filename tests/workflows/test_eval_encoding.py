"""Encoding for `eval`: one encoder pass per image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from helpers import GoldenCase

from aprilcli.core.detector import Detector
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.prompts import encode_prompts
from aprilcli.io.datasets import read_dataset
from aprilcli.options import EvalOptions
from aprilcli.types import ImageFeatures
from aprilcli.workflows.eval_encoding import ObjectEncoder
from aprilcli.workflows.eval_references import Setting


class CountingEncoder:
    """An ``ImageEncoder`` that counts the images another one encodes."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.spec, self.grids = encoder.spec, encoder.grids
        self.device, self.precision = encoder.device, encoder.precision
        self.count = 0
        self._encoder = encoder

    def encode(self, pixels: np.ndarray) -> ImageFeatures:
        self.count += len(pixels)
        return self._encoder.encode(pixels)


def test_each_image_is_encoded_once_for_all_settings(parts: Path, golden_vit: GoldenCase) -> None:
    encoder = CountingEncoder(golden_vit.encoder)
    (bolt,) = (item for item in read_dataset(parts).objects if item.name == "bolt")
    detector = Detector(encoder, encode_prompts(golden_vit.backbone.text, "bolt"), golden_vit.projector)
    settings = [Setting(0), *(Setting(shots, seed) for shots in (1, 2, 4) for seed in range(5))]
    options = EvalOptions(dataset=parts, batch_size=2)
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoded = ObjectEncoder(parts, settings, pool, options).encode(bolt, detector, lambda: None)
    drawn = {reference for references in encoded.references for reference in references}
    assert len(drawn) == 5
    assert encoder.count == 6 + len(drawn)
