"""The method alone: fitted to references, it gives the scores of a detector with their bank."""

from __future__ import annotations

import numpy as np
from helpers import GoldenCase

from aprilcli.core.fusion import fuse
from aprilcli.core.memory_bank import Recipe, Source, build
from aprilcli.core.methods import Method
from aprilcli.core.methods.april_gan import AprilGan
from aprilcli.core.prompts import encode_prompts
from aprilcli.types import ImageFeatures

REFERENCES = ("ref0", "ref1")


def references_of(golden: GoldenCase) -> list[ImageFeatures]:
    return [golden.encoder.encode(golden.pixels(name)) for name in REFERENCES]


def test_fitting_gives_the_scores_of_an_enrolled_bank(golden: GoldenCase) -> None:
    references = references_of(golden)
    sources = [Source(name, name) for name in REFERENCES]
    spec, recipe = golden.backbone.spec, Recipe(projector_fingerprint=golden.projector.identity["fingerprint"])
    bank = build([r.patch_tokens for r in references], sources, spec, "metal nut")
    bank = type(bank)(**{**vars(bank), "recipe": recipe, "features": tuple(rows.float() for rows in bank.features)})
    method: Method = AprilGan(spec, encode_prompts(golden.backbone.text, "metal nut"), golden.projector)
    method.fit(references)
    query = golden.encoder.encode(golden.pixels("query0"))
    (alone,) = fuse(method, method.evidence(query))
    enrolled = golden.detector(golden.projector, bank, "metal nut").methods[0]
    (detection,) = fuse(enrolled, enrolled.evidence(query))
    np.testing.assert_allclose(alone.anomaly_map, detection.anomaly_map, atol=1e-2)  # the bank is float16
    np.testing.assert_allclose(alone.anomaly_map, golden.numbers["query0/anomaly_map"].squeeze(), atol=1e-4)


def test_fitting_again_replaces_the_references(golden_vit: GoldenCase) -> None:
    method = AprilGan(golden_vit.backbone.spec, encode_prompts(golden_vit.backbone.text, "bolt"), None)
    query = golden_vit.encoder.encode(golden_vit.pixels("query0"))
    assert fuse(method, method.evidence(query))[0].anomaly_map is None
    method.fit(references_of(golden_vit))
    method.fit([query])
    assert fuse(method, method.evidence(query))[0].map_max < 1e-5
