"""Checkpoints without a training: what is read back, and which field a refusal names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import write_artifact
from aprilcli.workflows.checkpoint import CHECKPOINT, Checkpoint

STATE = {"step": torch.tensor(3), "weight.a": torch.ones(2, 3)}
KEPT = {"a": torch.zeros(2, 3)}
PLAIN = [{"epoch": 1, "loss": 2.0}, {"epoch": 2, "loss": 1.5}]
VALIDATED = [
    {"epoch": 1, "loss": 2.0, "val_loss": 2.5, "val_pixel_ap": None},
    {"epoch": 2, "loss": 1.5, "val_loss": 2.0, "val_pixel_ap": 0.5},
]


def make_checkpoint(history: list[dict[str, Any]], val: object = 0.2, seed: int = 0) -> Checkpoint:
    return Checkpoint({"settings": {"val": val, "seed": seed}}, history, STATE, KEPT)


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
        (0, [{"epoch": 1}], "history: 0.loss: "),
        (0, VALIDATED, "history: 0.val_loss: "),
        (0, [{"epoch": "1", "loss": 1.0}], "history: 0.epoch: "),
        (0, [{"epoch": 1, "loss": "1"}], "history: 0.loss: "),
        (0, PLAIN[1:], "epochs are not 1, 2, 3"),
        (0.2, PLAIN, "history: 0.val_loss: "),
        (0.2, [{**VALIDATED[0], "val_pixel_ap": True}], "history: 0.val_pixel_ap: "),
        (0.2, [{**VALIDATED[0], "\x1b": 1}], r"history: 0.\x1b: "),
    ],
)
def test_a_damaged_history_is_refused_by_field(tmp_path: Path, val: float, history: object, named: str) -> None:
    mine = make_checkpoint([], val)
    tensors = {**STATE, **{f"kept.{name}": tensor for name, tensor in KEPT.items()}}
    write_artifact(tmp_path / "c", CHECKPOINT, tensors, {**mine.description, "history": history})
    with pytest.raises(ArtifactError, match="not a whole checkpoint") as caught:
        mine.read(tmp_path / "c")
    assert str(caught.value).startswith(f"{tmp_path / 'c'}: ")
    assert named in str(caught.value)
    assert str(caught.value).isprintable()
    assert str(caught.value).endswith("; delete it and train again")


def test_another_training_is_refused_naming_both_sides(tmp_path: Path) -> None:
    make_checkpoint([], seed=1).write(tmp_path / "c")
    with pytest.raises(ArtifactError, match="another training \\(settings seed 1 against 0\\); resume with"):
        make_checkpoint([]).read(tmp_path / "c")
