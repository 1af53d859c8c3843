"""A training between two epochs, on disk: written whole, read with suspicion."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch

from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import read_artifact, write_artifact

CHECKPOINT = "training-checkpoint"  # the kind of artefact
_KEPT = "kept."  # before the names of the kept weights

Record = dict[str, Any]  # of an epoch: epoch (from 1), loss; with validation val_loss and val_pixel_ap


@dataclass(frozen=True)
class Checkpoint:
    """What a training goes on from.

    ``description``: data, settings and model, JSON-ready; ``history``: a record of each epoch done; ``state``: the
    trainer's own; ``kept``: the projector's weights after the best epoch.
    """

    description: dict[str, Any]
    history: list[Record]
    state: Mapping[str, torch.Tensor]
    kept: Mapping[str, torch.Tensor]

    def write(self, path: Path) -> None:
        """Write it aside, then rename it. Raises OutputError; ArtifactError for NaN or infinite values."""
        write_artifact(path, CHECKPOINT, self._tensors(), {**self.description, "history": self.history})

    def read(self, path: Path) -> Checkpoint:
        """Return what is at ``path`` of the training that this one is the beginning of.

        Raises ArtifactError where it is of another training or not whole.
        """
        artifact = read_artifact(path, CHECKPOINT)
        if differences := _differences(artifact.fields, self.description):
            raise ArtifactError(
                f"{path}: of another training ({'; '.join(differences)}); resume with its settings, or delete this file"
            )
        tensors, history = artifact.tensors, artifact.fields.get("history")
        whole = _shapes(tensors) == _shapes(self._tensors())
        if not whole or not _is_history(history, bool(self.description["settings"]["val"])):
            raise ArtifactError(f"{path}: not a whole checkpoint; delete it and train anew")
        state = {name: tensors[name] for name in self.state}
        kept = {name: tensors[_KEPT + name] for name in self.kept}
        return Checkpoint(self.description, history, state, kept)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.state, **{_KEPT + name: weight for name, weight in self.kept.items()}}


def _shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _differences(fields: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    sides = []
    for part, mine in description.items():
        theirs = fields.get(part)
        theirs = theirs if isinstance(theirs, dict) else {}
        sides += [
            f"{part} {key} {_say(theirs.get(key))} against {_say(value)}"
            for key, value in mine.items()
            if theirs.get(key) != value
        ]
    return sides


def _say(value: Any) -> str:
    is_fingerprint = isinstance(value, str) and len(value) == 64
    return json.dumps(value[:12] if is_fingerprint else value)[:80]


def _is_history(history: Any, validated: bool) -> TypeGuard[list[Record]]:
    """Whether a foreign file's records are what such a training leaves."""
    measures = {"loss", "val_loss", "val_pixel_ap"} if validated else {"loss"}
    return isinstance(history, list) and all(
        isinstance(record, dict)
        and record.keys() == {"epoch", *measures}
        and record["epoch"] == epoch
        and all(_is_measure(record[name], may_lack=name == "val_pixel_ap") for name in measures)
        for epoch, record in enumerate(history, 1)
    )


def _is_measure(value: Any, may_lack: bool) -> bool:
    return (value is None and may_lack) or (isinstance(value, float) and math.isfinite(value))
