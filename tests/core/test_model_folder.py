"""Configurations of model folders that are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers import GoldenCase, change_config

from aprilcli.core.catalogue import tiny_folder
from aprilcli.core.model_loading import load_backbone
from aprilcli.errors import ArtifactError


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("preprocess_cfg", "mean", [float("nan")] * 3),
        ("preprocess_cfg", "std", [1e-300] * 3),
        ("vision_cfg", "image_size", "abc"),
        ("vision_cfg", "image_size", []),
        ("vision_cfg", "image_size", None),
        ("vision_cfg", "image_size", 2**40),
        ("vision_cfg", "layers", [2, 2, 2]),
        ("vision_cfg", "layers", 10**9),
        ("vision_cfg", "width", 10**6),
        ("vision_cfg", "head_width", 0),
        ("vision_cfg", "patch_size", [14, 14]),
        ("text_cfg", "layers", 10**9),
        ("text_cfg", "heads", 3),
        ("text_cfg", "width", -64),
        ("text_cfg", "vocab_size", 10**12),
        ("text_cfg", "tokenizer_kwargs", {"trust_remote_code": True}),
        ("text_cfg", "tokenizer_kwargs", {"bpe_path": "/etc/passwd"}),
        ("text_cfg", "tokenizer_kwargs", []),
        ("text_cfg", "hf_tokenizer_name", "somebody/tokenizer"),
        ("text_cfg", "hf_model_name", "somebody/model"),
        ("text_cfg", "context_length", 30_000),
        ("text_cfg", "context_length", "x"),
        ("text_cfg", "eps", float("inf")),
        ("vision_cfg", "head_width", 10**9),
        ("vision_cfg", "norm_kwargs", {"eps": float("nan")}),
    ],
)
def test_hostile_configurations_are_refused_in_one_line(
    golden_vit: GoldenCase, tmp_path: Path, part: str, name: str, value: object
) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "hostile"))
    config = json.loads((folder / "open_clip_config.json").read_text())
    (config if part == "preprocess_cfg" else config["model_cfg"])[part][name] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError) as caught:
        load_backbone(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_a_resnet_with_huge_heads_is_refused(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "rn"))
    change_config(folder, lambda config: config["vision_cfg"].update(head_width=10**9))
    with pytest.raises(ArtifactError, match="head_width: Input should be less than or equal to 1024"):
        load_backbone(str(folder), device="cpu")


def test_a_request_for_foreign_code_is_found_in_escapes(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "escaped"))
    path = change_config(folder, lambda config: config.update(extra=[{"trust_remote_code": True}]))
    path.write_text(path.read_text().replace("trust_remote_code", "trust_remote\\u005fcode"))
    with pytest.raises(ArtifactError, match="foreign code"):
        load_backbone(str(folder), device="cpu")


def test_a_giant_configuration_is_not_read(golden_vit: GoldenCase, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(golden_vit.folder, tmp_path / "giant"))
    os.truncate(folder / "open_clip_config.json", 2**40)
    with pytest.raises(ArtifactError, match="larger than 1,048,576 bytes"):
        load_backbone(str(folder), device="cpu")
