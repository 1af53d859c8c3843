"""The prompt ensembles against the authors' text features, and when the cache has them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers import GoldenCase

from aprilcli.core import prompts
from aprilcli.core.backbone import TextEncoder
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.prompts import encode_prompts
from aprilcli.errors import OptionError


@pytest.mark.parametrize("name", ["metal_nut", "pcb"])
def test_text_features_agree_with_the_authors(golden: GoldenCase, name: str) -> None:
    features = encode_prompts(golden.backbone.text, name.replace("_", " "))
    torch.testing.assert_close(features, golden.numbers[f"text_features/{name}"], atol=1e-5, rtol=0)


def test_an_object_name_is_inserted_unchanged(golden_vit: GoldenCase) -> None:
    spaced = encode_prompts(golden_vit.backbone.text, "metal nut")
    assert not torch.allclose(encode_prompts(golden_vit.backbone.text, "metal_nut"), spaced, atol=1e-4)
    assert encode_prompts(golden_vit.backbone.text, "cover {left}").isfinite().all()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test's own; with few prompts, to save time."""
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(prompts, "TEMPLATES", prompts.TEMPLATES[:2])
    return tmp_path / "cache"


def text_of(folder: Path, **options: str) -> TextEncoder:
    return load_backbone(str(folder), device="cpu", **options).text  # type: ignore[arg-type]


def refuse_to_encode(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TextEncoder, "encode", lambda *_: pytest.fail("the text tower ran"))


def test_cached_features_are_the_same_bits_without_text_tower_and_tokenizer(
    golden: GoldenCase, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = encode_prompts(text_of(golden.folder), "bolt")
    refuse_to_encode(monkeypatch)
    text = text_of(golden.folder)
    assert encode_prompts(text, "bolt").numpy().tobytes() == computed.numpy().tobytes()
    assert not {"_model", "_tokenizer"} & vars(text).keys()


def test_another_object_precision_or_prompt_is_encoded(
    golden_vit: GoldenCase, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = [encode_prompts(text_of(golden_vit.folder), name) for name in ("bolt", "nut")]
    features.append(encode_prompts(text_of(golden_vit.folder, precision="bf16"), "bolt"))
    monkeypatch.setattr(prompts, "TEMPLATES", prompts.TEMPLATES[:1])
    features.append(encode_prompts(text_of(golden_vit.folder), "bolt"))
    assert len({rows.numpy().tobytes() for rows in features}) == 4


@pytest.mark.parametrize("changed", ["torch.get_num_threads", "aprilcli.core.model_loading.describe_tokenizer"])
def test_with_other_threads_or_another_tokenizer_features_are_encoded_again(
    golden_vit: GoldenCase, cache: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    encode_prompts(text_of(golden_vit.folder), "bolt")
    monkeypatch.setattr(changed, lambda *_: 99)
    encode_prompts(text_of(golden_vit.folder), "bolt")
    assert len(list((cache / "text").iterdir())) == 2


def test_a_copied_model_folder_has_the_same_features(
    golden_vit: GoldenCase, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = encode_prompts(text_of(golden_vit.folder), "bolt")
    copy = Path(shutil.copytree(golden_vit.folder, tmp_path / "copy"))
    refuse_to_encode(monkeypatch)
    assert torch.equal(encode_prompts(text_of(copy), "bolt"), computed)


def test_a_refused_name_is_not_cached(golden_vit: GoldenCase, cache: Path) -> None:
    for _ in range(2):
        with pytest.raises(OptionError, match="use a shorter object name"):
            encode_prompts(text_of(golden_vit.folder), "1 " * 99)
    assert not (cache / "text").exists()


def test_features_are_computed_where_the_cache_cannot_be_written(
    golden_vit: GoldenCase, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = encode_prompts(text_of(golden_vit.folder), "bolt")
    (tmp_path / "file").touch()
    monkeypatch.setenv("APRILCLI_CACHE", str(tmp_path / "file"))
    assert torch.equal(encode_prompts(text_of(golden_vit.folder), "bolt"), computed)
