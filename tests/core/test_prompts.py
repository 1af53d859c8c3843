"""The prompt ensembles against the authors' text features."""

from __future__ import annotations

import pytest
import torch
from helpers import GoldenCase

from aprilcli.core.prompts import encode_prompts


@pytest.mark.parametrize("name", ["metal_nut", "pcb"])
def test_text_features_agree_with_the_authors(golden: GoldenCase, name: str) -> None:
    features = encode_prompts(golden.backbone.text, name.replace("_", " "))
    torch.testing.assert_close(features, golden.numbers[f"text_features/{name}"], atol=1e-5, rtol=0)


def test_an_object_name_is_inserted_unchanged(golden_vit: GoldenCase) -> None:
    spaced = encode_prompts(golden_vit.backbone.text, "metal nut")
    assert not torch.allclose(encode_prompts(golden_vit.backbone.text, "metal_nut"), spaced, atol=1e-4)
    assert encode_prompts(golden_vit.backbone.text, "cover {left}").isfinite().all()
