"""Training checkpoints: the state after an epoch, written atomically and checked when read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import parse, read_artifact, write_artifact
from aprilcli.text import printable
from aprilcli.types import STRICT, Number, Size

CHECKPOINT = "training-checkpoint"  # the kind of artifact
_KEPT = "kept."  # prefix of the kept weights' names

Record = dict[str, Any]  # JSON of an _Epoch or, with validation, a _ValidatedEpoch


@dataclass(frozen=True)
class _Epoch:
    __pydantic_config__: ClassVar = STRICT

    epoch: Size
    loss: Number


@dataclass(frozen=True)
class _ValidatedEpoch(_Epoch):
    val_loss: Number
    val_pixel_ap: Number | None


@dataclass(frozen=True)
class Checkpoint:
    """A training's state after an epoch.

    ``description``: data, settings and model, JSON-ready; ``history``: a record per finished epoch; ``state``: the
    trainer's tensors; ``kept``: the projector's weights after the best epoch.
    """

    description: dict[str, Any]
    history: list[Record]
    state: Mapping[str, torch.Tensor]
    kept: Mapping[str, torch.Tensor]

    def write(self, path: Path) -> None:
        """Write the checkpoint atomically. Raises OutputError; ArtifactError for NaN or infinite values."""
        write_artifact(path, CHECKPOINT, self._tensors(), {**self.description, "history": self.history})

    def read(self, path: Path) -> Checkpoint:
        """Read a later checkpoint of the same training, with the same description and tensor shapes.

        Raises ArtifactError if it belongs to another training or is damaged.
        """
        artifact = read_artifact(path, CHECKPOINT)
        if differences := _differences(artifact.fields, self.description):
            raise ArtifactError(
                f"{path}: belongs to another training ({'; '.join(differences)}); "
                "resume with its settings, or delete this file"
            )
        tensors = artifact.tensors
        if wrong := sorted(_shapes(tensors) ^ _shapes(self._tensors())):
            raise _damaged(path, f"tensor {wrong[0][0]} is missing or differs")
        history = _history(path, artifact.fields.get("history"), bool(self.description["settings"]["val"]))
        state = {name: tensors[name] for name in self.state}
        kept = {name: tensors[_KEPT + name] for name in self.kept}
        return Checkpoint(self.description, history, state, kept)

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {**self.state, **{_KEPT + name: weight for name, weight in self.kept.items()}}


def _shapes(tensors: Mapping[str, torch.Tensor]) -> set[tuple[str, tuple[int, ...], str]]:
    return {(name, tuple(tensor.shape), str(tensor.dtype)) for name, tensor in tensors.items()}


def _differences(fields: Mapping[str, Any], description: Mapping[str, Any]) -> list[str]:
    sides = []
    for part, mine in description.items():
        theirs = fields.get(part)
        theirs = theirs if isinstance(theirs, dict) else {}
        sides += [
            f"{part} {key} {_shown(theirs.get(key))} against {_shown(value)}"
            for key, value in mine.items()
            if theirs.get(key) != value
        ]
    return sides


def _shown(value: Any) -> str:
    is_fingerprint = isinstance(value, str) and len(value) == 64
    return json.dumps(value[:12] if is_fingerprint else value)[:80]


def _history(path: Path, records: object, validated: bool) -> list[Record]:
    """Check the epoch records of a file. Raises ArtifactError."""
    schema: type[list[Any]] = list[_ValidatedEpoch] if validated else list[_Epoch]
    try:
        history = [asdict(record) for record in parse(schema, records)]
    except ValueError as error:
        raise _damaged(path, f"history: {error}") from error
    if [record["epoch"] for record in history] != list(range(1, len(history) + 1)):
        raise _damaged(path, "history: its epochs are not 1, 2, 3 …")
    return history


def _damaged(path: Path, what: str) -> ArtifactError:
    return ArtifactError(f"{path}: not a whole checkpoint ({printable(what[:200])}); delete it and train again")
