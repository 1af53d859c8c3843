"""Checkpoints of a training: what is read back, and that damaged and foreign ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import error_line, run_train, stop_in_second_epoch

from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import read_artifact, write_artifact
from aprilcli.workflows.checkpoint import SCHEMA, Checkpoint

INFINITE = 1e308  # as the writer takes it; in the file it becomes 1e+999
STATE = {"step": torch.tensor(3), "weight.a": torch.ones(2, 3)}
KEPT = {"a": torch.zeros(2, 3)}
PLAIN = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]
VALIDATED = [
    {"epoch": 1, "loss": 2.0, "val_loss": 2.5, "val_pixel_ap": None},
    {"epoch": 2, "loss": 1.5, "val_loss": 2.0, "val_pixel_ap": 0.5},
]


def make_checkpoint(history: list[dict[str, Any]], val: object = 0.2, seed: int = 0) -> Checkpoint:
    return Checkpoint({"data": {}, "settings": {"val": val, "seed": seed}, "spec": {}}, history, STATE, KEPT)


@pytest.mark.parametrize(("history", "val"), [([], 0), (PLAIN, 0), (VALIDATED, 0.2)])
def test_read_back_as_written(tmp_path: Path, history: list[dict[str, Any]], val: float) -> None:
    make_checkpoint(history, val).write(tmp_path / "c")
    saved = make_checkpoint([], val).read(tmp_path / "c")
    assert saved.history == history
    for mine, theirs in ((STATE, saved.state), (KEPT, saved.kept)):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


@pytest.mark.parametrize(
    ("val", "history", "named"),
    [
        (0, None, "history: "),
        (0, [{"epoch": 1}], "history.0.loss: "),
        (0, VALIDATED, "history.0.val_loss: "),
        (0, [{"epoch": "1", "loss": 1.0}], "history.0.epoch: "),
        (0, [{"epoch": 1, "loss": "1"}], "history.0.loss: "),
        (0, PLAIN[1:], "epochs are not 1, 2, 3"),
        (0.2, PLAIN, "history.0.val_loss: "),
        (0.2, [{**VALIDATED[0], "val_pixel_ap": True}], "history.0.val_pixel_ap: "),
        (0.2, [{**VALIDATED[0], "\x1b": 1}], r"history.0.\x1b: "),
    ],
)
def test_a_damaged_history_is_refused_by_field(tmp_path: Path, val: float, history: object, named: str) -> None:
    mine = make_checkpoint([], val)
    tensors = {**STATE, **{f"kept.{name}": tensor for name, tensor in KEPT.items()}}
    write_artifact(tmp_path / "c", SCHEMA.kind, tensors, {**mine.description, "history": history})
    with pytest.raises(ArtifactError, match="not a valid training-checkpoint") as caught:
        mine.read(tmp_path / "c")
    assert str(caught.value).startswith(f"{tmp_path / 'c'}: ")
    assert named in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("; delete it and train again")


def test_another_training_is_refused_naming_both_sides(tmp_path: Path) -> None:
    make_checkpoint([], seed=1).write(tmp_path / "c")
    with pytest.raises(ArtifactError, match="another training \\(settings seed 1 against 0\\); resume with"):
        make_checkpoint([]).read(tmp_path / "c")


def test_a_damaged_checkpoint_is_refused(spotted: Path, small_model: list[str], tmp_path: Path) -> None:
    (tmp_path / "p.safetensors.checkpoint").write_bytes(b"\x80\x02}q\x00.and more")
    result = run_train(spotted, tmp_path / "p.safetensors", small_model, "--resume")
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
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history: object
) -> None:
    out = tmp_path / "p.safetensors"
    checkpoint = stop_in_second_epoch(spotted, out, small_model, monkeypatch)
    artifact = read_artifact(checkpoint, SCHEMA)
    write_artifact(checkpoint, artifact.kind, artifact.tensors, {**artifact.fields, "history": history})
    checkpoint.write_bytes(checkpoint.read_bytes().replace(b"1e+308", b"1e+999"))
    result = run_train(spotted, out, small_model, "--epochs", 2, "--resume")
    assert result.exit_code == 1
    assert "not a valid training-checkpoint" in error_line(result)


@pytest.mark.parametrize("change", ["missing", "more", "shape", "dtype", "kept"])
def test_a_checkpoint_of_other_tensors_is_refused(
    spotted: Path, small_model: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    checkpoint = stop_in_second_epoch(spotted, tmp_path / "p.safetensors", small_model, monkeypatch)
    artifact = read_artifact(checkpoint, SCHEMA)
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
    result = run_train(spotted, tmp_path / "p.safetensors", small_model, "--epochs", 2, "--resume")
    assert result.exit_code == 1
    assert "not a valid training-checkpoint" in error_line(result)
