"""Training checkpoints: the state of a training between two epochs, on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import DTYPES, Schema, TensorSpec, parse, read_artifact, write_artifact
from aprilcli.text import printable
from aprilcli.types import STRICT, Float, Size

Record = dict[str, Any]  # of one epoch: the fields of _Epoch, or of _ValidatedEpoch with validation


@dataclass(frozen=True)
class _Epoch:
    """One epoch's number, from 1, and mean training loss."""

    __pydantic_config__: ClassVar = STRICT

    epoch: Size
    loss: Float


@dataclass(frozen=True)
class _ValidatedEpoch(_Epoch):
    """Also its validation loss, and pixel AP in [0, 1] if the validation images have masks."""

    val_loss: Float
    val_pixel_ap: Float | None


@dataclass(frozen=True)
class _Fields:
    """The JSON fields of a checkpoint's file: the training's description and history."""

    data: dict[str, Any]
    settings: dict[str, Any]
    spec: dict[str, Any]
    history: list[Record]


SCHEMA = Schema("training-checkpoint", _Fields, None, "delete it and train again")
_KEPT = "kept."  # prefix of the kept weights' names


@dataclass(frozen=True)
class Checkpoint:
    """The state from which a training resumes.

    ``description``: data, settings and model, JSON-ready; ``history``: a record of each finished epoch; ``state``: the
    trainer's tensors; ``kept``: the projector's weights after the best epoch.
    """

    description: dict[str, Any]
    history: list[Record]
    state: Mapping[str, torch.Tensor]
    kept: Mapping[str, torch.Tensor]

    def write(self, path: Path) -> None:
        """Write the checkpoint. Raises OutputError; ArtifactError for NaN or infinite values."""
        write_artifact(path, SCHEMA.kind, self._tensors(), {**self.description, "history": self.history})

    def read(self, path: Path) -> Checkpoint:
        """Return the checkpoint at ``path``, which must be of the same training.

        Raises ArtifactError if it is of another training, or if its tensors or records do not fit this training.
        """
        artifact = read_artifact(path, replace(SCHEMA, tensors=lambda fields: self._specs(path, fields)))
        state = {name: artifact.tensors[name] for name in self.state}
        kept = {name: artifact.tensors[_KEPT + name] for name in self.kept}
        return Checkpoint(self.description, artifact.fields["history"], state, kept)

    def _specs(self, path: Path, fields: _Fields) -> dict[str, TensorSpec]:
        """Return the tensors of this training's checkpoints, if ``fields`` are of this training."""
        if differences := _differences(fields, self.description):
            raise ArtifactError(
                f"{path}: of another training ({'; '.join(differences)}); resume with its settings, or delete this file"
            )
        records: type[list[Any]] = list[_ValidatedEpoch] if self.description["settings"]["val"] else list[_Epoch]
        history = parse(records, fields.history, "history")
        if [record.epoch for record in history] != list(range(1, len(history) + 1)):
            raise ValueError("history: its epochs are not 1, 2, 3 …")
        tensors = self._tensors().items()
        return {name: TensorSpec(tuple(tensor.shape), (DTYPES[tensor.dtype],)) for name, tensor in tensors}

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.state, **{_KEPT + name: weight for name, weight in self.kept.items()}}


def _differences(fields: _Fields, description: Mapping[str, Any]) -> list[str]:
    return [
        f"{part} {printable(key)} {_shown(theirs.get(key))} against {_shown(mine.get(key))}"
        for part, mine in description.items()
        for theirs in [getattr(fields, part)]
        for key in {**mine, **theirs}
        if theirs.get(key) != mine.get(key)
    ]


def _shown(value: Any) -> str:
    is_fingerprint = isinstance(value, str) and len(value) == 64
    return json.dumps(value[:12] if is_fingerprint else value)[:80]
