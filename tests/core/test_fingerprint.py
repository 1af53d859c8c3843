"""Which changes of a model change its fingerprint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from helpers import GoldenCase
from safetensors.torch import load_file, save_file

from aprilcli.core.model_loading import load_backbone


def test_fingerprint_depends_on_positions_and_heads_but_not_image_size(golden_vit: GoldenCase, tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> Path:
        folder = Path(shutil.copytree(golden_vit.folder, tmp_path / name))
        weights = load_file(folder / "open_clip_model.safetensors")
        config = json.loads((folder / "open_clip_config.json").read_text())
        change(weights, config["model_cfg"])
        save_file(weights, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return folder

    def fingerprint_of(folder: Path, size: int = 70) -> str:
        return load_backbone(str(folder), image_size=size, device="cpu").spec.fingerprint

    original = fingerprint_of(golden_vit.folder)
    assert fingerprint_of(golden_vit.folder, 56) == original
    moved = changed("moved", lambda weights, _: weights["visual.positional_embedding"].add_(1))
    heads = changed("heads", lambda _, config: config["text_cfg"].update(heads=config["text_cfg"]["heads"] * 2))
    assert len({original, fingerprint_of(moved), fingerprint_of(heads)}) == 3


def test_fingerprint_does_not_depend_on_the_image_size(golden: GoldenCase) -> None:
    native = load_backbone(str(golden.folder), device="cpu")
    assert native.spec.fingerprint == golden.backbone.spec.fingerprint
    assert native.spec.image_size == (64 if "rn" in golden.folder.name else 56)
    assert native.spec.stages == golden.stages
