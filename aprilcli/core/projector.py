"""The projector: one linear layer per stage (eq. 2), from patch tokens to the joint space."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from aprilcli.core.catalogue import PAPER_BACKBONE, PAPER_PRETRAINED, PAPER_STAGES, tiny_folder
from aprilcli.core.fingerprint import fingerprint
from aprilcli.defaults import PAPER, TINY, VISA
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import UNDATED, Schema, TensorSpec, as_read_errors, read_artifact, write_artifact
from aprilcli.io.authors_format import read_authors_projector
from aprilcli.io.published import PUBLISHED, fetch_projector
from aprilcli.text import printable
from aprilcli.types import ModelSpec

KIND = "projector"
FOLDER_PROJECTOR = "projector.safetensors"
# What must agree between the model that a projector was trained with and the model it is used with. The image size
# need not: a linear layer maps tokens one by one.
MUST_MATCH = ("activation", "stages", "stage_widths", "joint_width")


@dataclass(frozen=True)
class _Fields:
    """The JSON fields of a projector's file; more are kept as they are."""

    spec: ModelSpec
    trained_on: str = ""


def _tensors(fields: _Fields) -> dict[str, TensorSpec]:
    joint_width = fields.spec.joint_width
    specs = {}
    for stage, width in enumerate(fields.spec.stage_widths):
        specs[f"fc.{stage}.weight"] = TensorSpec((joint_width, width))
        specs[f"fc.{stage}.bias"] = TensorSpec((joint_width,))
    return specs


SCHEMA = Schema(KIND, _Fields, _tensors, "train or download the projector again")


class Projector(torch.nn.Module):
    """F_s' = k F_s + b per stage (eq. 2).

    ``fc.n`` maps the tokens of stage n, [B, L, Cv_n], to [B, L, C]. ``trained_on``: the data set, empty if unknown.
    ``fields``: the metadata of its file. ``name``: its source. ``notes``: what the user should know about it.
    """

    def __init__(self, spec: ModelSpec, trained_on: str = "", fields: Mapping[str, Any] | None = None) -> None:
        """Make layers of the spec's widths with PyTorch's initial values."""
        super().__init__()
        self.spec = spec
        self.name = ""
        self.notes: tuple[str, ...] = ()
        self.trained_on = trained_on
        self.fields = dict(fields or {})
        self.fc = torch.nn.ModuleList(torch.nn.Linear(width, spec.joint_width) for width in spec.stage_widths)

    def forward(self, patch_tokens: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Project the tokens of every stage, N × [B, L, Cv] → N × [B, L, C], not normalized."""
        return tuple(layer(tokens) for layer, tokens in zip(self.fc, patch_tokens, strict=True))

    @property
    def identity(self) -> dict[str, str]:
        """Its source, its training data, and the SHA-256 of its weights."""
        return {"name": self.name, "trained_on": self.trained_on, "fingerprint": fingerprint(self.state_dict())}


def save_projector(projector: Projector, path: Path, created: str = UNDATED) -> None:
    """Write a projector and the settings of its model, atomically. Raises OutputError."""
    tensors = {name: tensor.detach().float().cpu() for name, tensor in projector.state_dict().items()}
    fields = {**projector.fields, "spec": projector.spec.to_json(), "trained_on": projector.trained_on}
    write_artifact(path, KIND, tensors, fields, created=created)


def load_projector(source: str | None, model: str, spec: ModelSpec, *, progress: bool = False) -> Projector | None:
    """Read the projector for a model and check that it fits.

    ``source``: ``visa`` or ``mvtec`` (published for the paper's model), a safetensors file, or a ``.pth`` in the
    authors' format, which fits any model of its widths. None means the model's own: ``visa`` for ``paper``,
    ``projector.safetensors`` in a model folder that has it, otherwise no projector. Raises ArtifactError where it was
    made for another model, naming both.
    """
    if source is None:
        source = _own_projector(model)
        if source is None:
            return None
    if source in PUBLISHED:
        return _published(source, fetch_projector(source, progress=progress), spec)
    path = Path(source)
    if path.suffix == ".pth":
        return _in_authors_format(path, read_authors_projector(path), spec)

    artifact = read_artifact(path, SCHEMA)
    _check_match(path, artifact.content.spec, spec)
    projector = Projector(artifact.content.spec, artifact.content.trained_on, artifact.fields)
    return _fill(projector, artifact.tensors, str(path))


def check_projector_file(source: str) -> None:
    """Refuse the path of a file that does not exist or cannot be reached. Raises ArtifactError."""
    if source not in PUBLISHED:
        with as_read_errors(Path(source)):
            Path(source).stat()


def _own_projector(model: str) -> str | None:
    if model == PAPER:
        return VISA
    folder = tiny_folder() if model == TINY else Path(model)
    path = folder / FOLDER_PROJECTOR
    return str(path) if path.is_file() else None


def _published(name: str, tensors: Mapping[str, torch.Tensor], spec: ModelSpec) -> Projector:
    """Check a published projector against the authors' model; its file does not describe it."""
    widths, joint_width = _widths(tensors)
    made_for = replace(
        spec,
        backbone=PAPER_BACKBONE,
        pretrained=PAPER_PRETRAINED,
        activation="gelu",
        stages=PAPER_STAGES,
        stage_widths=widths,
        joint_width=joint_width,
        fingerprint="",
    )
    _check_match(Path(name), made_for, spec)
    return _fill(Projector(spec, trained_on=name), tensors, name)


def _in_authors_format(path: Path, tensors: Mapping[str, torch.Tensor], spec: ModelSpec) -> Projector:
    """Accept a file of any model's projector if its widths fit."""
    widths, joint_width = _widths(tensors)
    if (widths, joint_width) != (spec.stage_widths, spec.joint_width):
        raise ArtifactError(
            f"{path}: this projector has stage widths {_listed(widths)} and joint width {joint_width}, "
            f"{spec.label} has {_listed(spec.stage_widths)} and {spec.joint_width}; "
            "give the model and the stages of this projector"
        )
    projector = _fill(Projector(spec), tensors, str(path))
    projector.notes = (
        f"{printable(path)}: the file does not state the model it was trained with; it fits {spec.label}",
    )
    return projector


def _widths(tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[int, ...], int]:
    """Return the stage widths and the joint width of layers in the authors' format."""
    widths = tuple(int(tensors[f"fc.{n}.weight"].shape[1]) for n in range(len(tensors) // 2))
    return widths, int(tensors["fc.0.weight"].shape[0])


def _listed(widths: tuple[int, ...]) -> str:
    return ",".join(map(str, widths))


def _check_match(path: Path, made_for: ModelSpec, spec: ModelSpec) -> None:
    # A model folder can be renamed, so a fingerprint decides where there is one, otherwise open_clip's name. For a
    # published projector, which has no fingerprint, and a folder, which has no name, widths and activation decide.
    named = ("backbone", "pretrained") if spec.pretrained else ()
    identity = ("fingerprint",) if made_for.fingerprint else named
    sides = made_for.mismatches(spec, (*identity, *MUST_MATCH))
    if sides:
        raise ArtifactError(
            f"{path}: this projector was made for {made_for.label}, not for {spec.label} ({sides}); "
            "give this model's own projector, or the model and the stages of this projector"
        )


def _fill(projector: Projector, tensors: Mapping[str, torch.Tensor], name: str) -> Projector:
    projector.name = name
    projector.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return projector.eval().requires_grad_(False)
