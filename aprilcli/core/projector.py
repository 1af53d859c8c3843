"""One linear layer per stage (eq. 2), from patch tokens to the joint space; read, checked, written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aprilcli.core.catalogue import PAPER, PAPER_BACKBONE, PAPER_PRETRAINED, PAPER_STAGES, TINY, tiny_folder
from aprilcli.core.fingerprint import fingerprint
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import ArtifactHeader, read_artifact, write_artifact
from aprilcli.io.published import PUBLISHED, fetch_projector, read_authors_projector
from aprilcli.text import quoted
from aprilcli.types import ModelSpec

KIND = "projector"
# A trained projector's bytes follow from data and settings alone, so its file bears no time.
UNDATED = "1970-01-01T00:00:00+00:00"
FOLDER_PROJECTOR = "projector.safetensors"
# What must agree between the backbone a projector was trained on and the one it is used with. Not the image size:
# a linear layer maps tokens one by one.
MUST_MATCH = ("activation", "stages", "stage_widths", "joint_width")


class Projector(torch.nn.Module):
    """F_s' = k F_s + b per stage (eq. 2).

    ``fc.n`` maps stage n's tokens [B, L, Cv_n] to [B, L, C]. ``trained_on`` names the data set, empty if unknown;
    ``fields`` is what the file says of its making; ``name`` is where it came from.
    """

    def __init__(self, spec: ModelSpec, trained_on: str = "", fields: Mapping[str, Any] | None = None) -> None:
        """Make layers of the spec's widths, initialised as PyTorch does."""
        super().__init__()
        self.spec = spec
        self.name = ""
        self.trained_on = trained_on
        self.fields = dict(fields or {})
        self.fc = torch.nn.ModuleList(torch.nn.Linear(width, spec.joint_width) for width in spec.stage_widths)

    def forward(self, patch_tokens: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Project every stage's tokens, N × [B, L, Cv] → N × [B, L, C]; not normalised."""
        return tuple(layer(tokens) for layer, tokens in zip(self.fc, patch_tokens, strict=True))

    @property
    def identity(self) -> dict[str, str]:
        """Where it came from, what it was trained on, and the SHA-256 of its weights."""
        return {"name": self.name, "trained_on": self.trained_on, "fingerprint": fingerprint(self.state_dict())}


def save_projector(projector: Projector, path: Path, created: str | None = None) -> None:
    """Write a projector with its model's settings; aside first, then renamed. Raises OutputError."""
    tensors = {name: tensor.detach().float().cpu() for name, tensor in projector.state_dict().items()}
    fields = {**projector.fields, "spec": projector.spec.to_json(), "trained_on": projector.trained_on}
    write_artifact(path, KIND, tensors, fields, created=created)


def load_projector(source: str | None, model: str, spec: ModelSpec, *, progress: bool = False) -> Projector | None:
    """Find, read and check the projector for a backbone.

    ``source``: ``visa`` or ``mvtec`` (published), a safetensors file, an authors' ``.pth``; None means the model's
    own: ``visa`` for ``paper``, ``projector.safetensors`` in the folder of a model that has one, else no projector.
    Raises ArtifactError where it was made for another backbone, naming both sides.
    """
    if source is None:
        source = _own_projector(model)
        if source is None:
            return None
    if source in PUBLISHED:
        tensors = fetch_projector(source, progress=progress)
        return _published(source, tensors, spec, source)
    path = Path(source)
    if path.suffix == ".pth":
        return _published(str(path), read_authors_projector(path), spec, "")

    def check(header: ArtifactHeader) -> None:
        made_for = _made_for(path, header)
        _check_match(path, made_for, spec)
        _check_shapes(Projector(made_for), header.shapes, str(path))

    artifact = read_artifact(path, KIND, check)
    projector = Projector(_made_for(path, artifact), str(artifact.fields.get("trained_on", "")), artifact.fields)
    return _fill(projector, artifact.tensors, str(path))


def _made_for(path: Path, header: ArtifactHeader) -> ModelSpec:
    try:
        return ModelSpec.from_json(header.fields["spec"])
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{path}: its metadata does not say which model it is for; train or fetch it anew"
        ) from error


def _own_projector(model: str) -> str | None:
    if model == PAPER:
        return "visa"
    folder = tiny_folder() if model == TINY else Path(model)
    path = folder / FOLDER_PROJECTOR
    return str(path) if path.is_file() else None


def _published(name: str, tensors: Mapping[str, torch.Tensor], spec: ModelSpec, trained_on: str) -> Projector:
    """Check an authors' file, which says nothing of itself: their backbone is known, their widths are in the shapes."""
    stage_count = len(tensors) // 2
    widths = tuple(int(tensors[f"fc.{n}.weight"].shape[1]) for n in range(stage_count))
    joint_width = int(tensors["fc.0.weight"].shape[0])
    made_for = ModelSpec(
        backbone=PAPER_BACKBONE,
        pretrained=PAPER_PRETRAINED,
        activation="gelu",
        image_size=spec.image_size,
        stages=PAPER_STAGES if stage_count == len(PAPER_STAGES) else tuple(range(1, stage_count + 1)),
        stage_widths=widths,
        joint_width=joint_width,
        mean=spec.mean,
        std=spec.std,
        fingerprint="",
    )
    _check_match(Path(name), made_for, spec)
    return _fill(Projector(spec, trained_on), tensors, name)


def _check_match(path: Path, made_for: ModelSpec, spec: ModelSpec) -> None:
    # A folder may move and keep its weights: where a fingerprint is known it speaks, else open_clip's name does. An
    # authors' file has none, and a folder of the paper's model no name: shapes and activation must do.
    named = ("backbone", "pretrained") if spec.pretrained else ()
    identity = ("fingerprint",) if made_for.fingerprint else named
    sides = made_for.mismatches(spec, (*identity, *MUST_MATCH))
    if sides:
        raise ArtifactError(
            f"{path}: this projector was made for {made_for.label}, not for {spec.label} ({sides}); "
            "give the projector of this model, or the model and --stages of this projector"
        )


def _check_shapes(projector: Projector, found: Mapping[str, tuple[int, ...]], name: str) -> None:
    expected = {key: tuple(tensor.shape) for key, tensor in projector.state_dict().items()}
    if expected != found:
        wrong = sorted(set(expected.items()) ^ set(found.items()))[0]
        raise ArtifactError(
            f"{name}: not a whole projector (tensor {quoted(wrong[0])} {wrong[1]}); train or fetch it anew"
        )


def _fill(projector: Projector, tensors: Mapping[str, torch.Tensor], name: str) -> Projector:
    _check_shapes(projector, {key: tuple(tensor.shape) for key, tensor in tensors.items()}, name)
    projector.name = name
    projector.load_state_dict({key: tensor.float() for key, tensor in tensors.items()})
    return projector.eval().requires_grad_(False)
