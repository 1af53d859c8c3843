"""Encoding for `eval`: one encoder pass per image."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers import CountingEncoder, GoldenCase

from aprilcli.core.detector import Detector
from aprilcli.core.prompts import encode_prompts
from aprilcli.io.datasets import read_dataset
from aprilcli.options import EvalOptions
from aprilcli.workflows.eval_encoding import ObjectEncoder
from aprilcli.workflows.eval_references import Setting


def test_each_image_is_encoded_once_for_all_settings(parts: Path, golden_vit: GoldenCase) -> None:
    encoder = CountingEncoder(golden_vit.encoder)
    (bolt,) = (one for one in read_dataset(parts).objects if one.name == "bolt")
    detector = Detector(encoder, encode_prompts(golden_vit.backbone.text, "bolt"), golden_vit.projector)
    settings = [Setting(0), *(Setting(shots, seed) for shots in (1, 2, 4) for seed in range(5))]
    options = EvalOptions(dataset=parts, batch_size=2)
    with ThreadPoolExecutor(max_workers=2) as pool:
        encoded = ObjectEncoder(parts, settings, pool, options).encode(bolt, detector, lambda: None)
    drawn = {reference for references in encoded.references for reference in references}
    assert len(drawn) == 5
    assert encoder.count == 6 + len(drawn)
