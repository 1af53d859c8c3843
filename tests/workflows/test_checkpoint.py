"""Checkpoints of `train`: damaged and foreign ones are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import GoldenCase, draw_spotted_object, error_line, run_train, stop_in_second_epoch

from aprilcli.io.artifacts import read_artifact, write_artifact
from aprilcli.workflows.checkpoint import CHECKPOINT

INFINITE = 1e308  # as the writer takes it; in the file it becomes 1e+999


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    return draw_spotted_object(tmp_path / "parts")


@pytest.fixture
def model(golden_vit: GoldenCase) -> list[str]:
    return ["--model", str(golden_vit.folder), "--image-size", "56", "--stages", "2,4,6,8", "--device", "cpu"]


def test_a_damaged_checkpoint_is_refused(parts: Path, model: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.safetensors.checkpoint").write_bytes(b"\x80\x02}q\x00.and more")
    result = run_train(parts, tmp_path / "p.safetensors", model, "--resume")
    assert result.exit_code == 1
    assert "pickle" in error_line(result)


@pytest.mark.parametrize(
    "history",
    [
        [1],
        [{"epoch": 1}],
        [{"epoch": 2, "loss": 1.0}],
        [{"epoch": 1, "loss": 1.0, "val_pixel_ap": "x"}],
        [{"epoch": 1, "loss": INFINITE}],
        [{"epoch": 1, "loss": 1.0, "val_loss": 1.0}],
        {"a": 1},
        {},
        "",
        None,
    ],
)
def test_a_checkpoint_of_foreign_records_is_refused(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: object
) -> None:
    out = tmp_path / "p.safetensors"
    checkpoint = stop_in_second_epoch(parts, out, model, monkeypatch)
    artifact = read_artifact(checkpoint, CHECKPOINT)
    write_artifact(checkpoint, artifact.kind, artifact.tensors, {**artifact.fields, "history": history})
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b"1e+308", b"1e+999"))
    result = run_train(parts, out, model, "--epochs", 2, "--resume")
    assert result.exit_code == 1
    assert "not a whole checkpoint" in error_line(result)


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype", "kept"])
def test_a_checkpoint_of_other_tensors_is_refused(
    parts: Path, model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    checkpoint = stop_in_second_epoch(parts, tmp_path / "p.safetensors", model, monkeypatch)
    artifact = read_artifact(checkpoint, CHECKPOINT)
    tensors = dict(artifact.tensors)
    weight = next(name for name in tensors if name.startswith("kept." if change == "kept" else "weight."))
    changed = {
        "more": {"other": torch.ones(1)},
        "shape": {weight: tensors[weight][:1]},
        "dtype": {weight: tensors[weight].half()},
    }
    tensors |= changed.get(change, {})
    if change in ("missing", "kept"):
        del tensors[weight]
    write_artifact(checkpoint, artifact.kind, tensors, artifact.fields)
    result = run_train(parts, tmp_path / "p.safetensors", model, "--epochs", 2, "--resume")
    assert result.exit_code == 1
    assert "not a whole checkpoint" in error_line(result)
