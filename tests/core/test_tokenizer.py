"""What the description of a tokenizer depends on."""

from __future__ import annotations

from pathlib import Path

from aprilcli.core.tokenizer import describe_tokenizer


def test_another_vocabulary_is_another_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "weights.bin").write_bytes(b"1")
    first = describe_tokenizer(tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"2")
    (tmp_path / "folder.json").mkdir()
    assert describe_tokenizer(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("{ }")
    assert describe_tokenizer(tmp_path) != first


def test_a_tokenizer_is_described_with_the_packages_that_run_it(tmp_path: Path) -> None:
    assert describe_tokenizer(None)["open_clip_torch"]
    assert {"transformers", "tokenizers"} <= describe_tokenizer(tmp_path).keys()
