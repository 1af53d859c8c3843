"""A part's bank on disk: its path, and the schema of its JSON fields and tensors."""

from __future__ import annotations

import re
import unicodedata
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, Strict

from aprilcli.core.calibration import LARGEST, Calibration, CalibrationMethod
from aprilcli.core.memory_bank import CalibrationImages, MemoryBank, Recipe, Source
from aprilcli.errors import ArtifactError, InputError, OptionError, OutputError
from aprilcli.io.artifacts import Artifact, Schema, TensorSpec, parse, read_artifact, write_artifact
from aprilcli.types import MAX_OBJECT_NAME, Evidence, ModelSpec, Number, one_line

KIND = "bank"
SUFFIX = ".safetensors"
PART_NAME = re.compile(r"\w[\w.-]{0,99}")
CHECKED_BYTES = 8 * 1024**2  # of rows checked at a time
UNIT_TOLERANCE = 0.01  # of rows' lengths: float16 rounds them by a tenth of that
MEASURED = ("appearances", "fits", "spacings")  # tensors with a row per source
LONGEST = 1 + UNIT_TOLERANCE  # elements of unit rows


@dataclass(frozen=True)
class _Fields:
    """The JSON fields of a bank's file."""

    spec: ModelSpec
    object: Annotated[str, Field(max_length=MAX_OBJECT_NAME), AfterValidator(one_line)]
    sources: tuple[Source, ...]
    rows_per_source: tuple[tuple[Annotated[int, Strict(), Field(ge=0)], ...], ...]
    coreset_fraction: Annotated[Number, Field(gt=0, le=1)]
    recipe: Recipe
    calibration_method: CalibrationMethod | None = None
    calibration_sources: tuple[Source, ...] = ()


def _tensors(fields: _Fields) -> dict[str, TensorSpec]:
    count = len(fields.sources)
    further, size, appearance = len(fields.calibration_sources), fields.spec.image_size, sum(fields.spec.stage_widths)
    specs = {
        "text_scores": TensorSpec((count,), low=0, high=1, optional=True),
        "appearances": TensorSpec((count, appearance), low=-LONGEST, high=LONGEST, optional=True),
        "fits": TensorSpec((count,), low=-LARGEST, high=LARGEST, optional=True),
        "spacings": TensorSpec((count,), low=0, high=2, optional=True),
    }
    for stage, width in enumerate(fields.spec.stage_widths):
        specs[f"features.{stage}"] = TensorSpec((None, width), ("F32", "F16"))
        specs[f"logits.{stage}"] = TensorSpec((count, None, None), low=-LARGEST, high=LARGEST, optional=True)
    if fields.calibration_method is not None:
        specs |= {f"calibration.{name}": TensorSpec((None,)) for name in ("scores", "map_maxima")}
        specs["calibration.distances"] = TensorSpec((None,), optional=True)
    if further:
        specs["calibration_images.pixels"] = TensorSpec((further, size, size, 3), ("U8",))
        specs["calibration_images.appearances"] = TensorSpec((further, appearance), low=-LONGEST, high=LONGEST)
    return specs


SCHEMA = Schema(KIND, _Fields, _tensors, "enroll the part again")


def bank_path(part: str, banks: Path) -> Path:
    """Return the path of a bank to read: ``part`` itself if it names a file, else as ``new_bank_path``."""
    return Path(part) if part.endswith(SUFFIX) else new_bank_path(part, banks)


def new_bank_path(part: str, banks: Path) -> Path:
    """Return the path of a part's bank, ``banks/NAME.safetensors``.

    Raises OptionError for a name that could leave the folder or confuse a shell.
    """
    part = unicodedata.normalize("NFC", part)  # file systems and terminals write accents in two ways
    if not PART_NAME.fullmatch(part) or ".." in part:
        raise OptionError(f"part name {part!r}: it becomes a file name; use letters, digits, '_', '-' and '.'")
    return banks / f"{part}{SUFFIX}"


def save_bank(bank: MemoryBank, path: Path) -> None:
    """Write a bank. An interrupted write leaves the old bank intact. Raises OutputError."""
    tensors, fields = to_artifact(bank)
    try:
        parse(_Fields, fields)
    except ValueError as error:
        raise OutputError(f"{path}: a bank cannot keep these settings ({error}); change them") from error
    write_artifact(path, KIND, tensors, fields, created=bank.created)


def load_bank(path: Path) -> MemoryBank:
    """Read a bank and check that its pieces fit each other. Raises InputError or ArtifactError."""
    with suppress(OSError):  # e.g. a name too long or a folder without rights: read_artifact explains it
        if not path.exists():
            raise InputError(f"{path}: there is no such bank; enroll the part first")
    artifact = read_artifact(path, SCHEMA)
    try:
        return _bank(artifact)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def to_artifact(bank: MemoryBank) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and JSON-ready fields of a bank's file."""
    tensors = {f"features.{stage}": rows for stage, rows in enumerate(bank.features)}
    fields = asdict(
        _Fields(bank.spec, bank.object_name, bank.sources, bank.rows_per_source, bank.coreset_fraction, bank.recipe)
    )
    del fields["calibration_method"], fields["calibration_sources"]
    if bank.zero_shot is not None:
        tensors["text_scores"] = bank.zero_shot.text_scores
        tensors |= {f"logits.{stage}": logits for stage, logits in enumerate(bank.zero_shot.logits)}
    tensors |= {n: values for n in MEASURED if (values := getattr(bank, n)) is not None}
    if bank.calibration_images is not None:
        fields["calibration_sources"] = [asdict(source) for source in bank.calibration_images.sources]
        tensors["calibration_images.pixels"] = bank.calibration_images.pixels
        tensors["calibration_images.appearances"] = bank.calibration_images.appearances
    if bank.calibration is not None:
        arrays = bank.calibration.to_arrays()
        tensors |= {f"calibration.{name}": torch.tensor(values) for name, values in arrays.items()}
        fields["calibration_method"] = bank.calibration.method
    return tensors, fields


def _bank(artifact: Artifact[_Fields]) -> MemoryBank:
    """Rebuild what ``to_artifact`` was given. Raises ArtifactError without the path."""
    fields, tensors = artifact.content, artifact.tensors
    stages = range(len(fields.spec.stages))
    features = tuple(tensors[f"features.{stage}"] for stage in stages)
    _check_lengths(features)
    calibration = None
    if fields.calibration_method is not None:
        arrays = {
            name.removeprefix("calibration."): values.numpy()
            for name, values in tensors.items()
            if name.startswith("calibration.")
        }
        calibration = Calibration.from_arrays(arrays, fields.calibration_method)
    images = None
    if fields.calibration_sources:
        pixels, appearances = (tensors[f"calibration_images.{name}"] for name in ("pixels", "appearances"))
        images = CalibrationImages(fields.calibration_sources, pixels, appearances)
    zero_shot = None
    if "text_scores" in tensors:
        logits = (f"logits.{stage}" for stage in stages)
        zero_shot = Evidence(tensors["text_scores"], tuple(tensors[name] for name in logits if name in tensors))
    return MemoryBank(
        features=features,
        rows_per_source=fields.rows_per_source,
        spec=fields.spec,
        object_name=fields.object,
        sources=fields.sources,
        calibration=calibration,
        coreset_fraction=fields.coreset_fraction,
        created=artifact.created,
        version=artifact.version,
        recipe=fields.recipe,
        zero_shot=zero_shot,
        **{name: tensors.get(name) for name in MEASURED},
        calibration_images=images,
    )


def _check_lengths(features: tuple[torch.Tensor, ...]) -> None:
    """Refuse rows that are neither of unit length nor zero: their distances would be meaningless."""
    for stage, stage_rows in enumerate(features):
        for rows in torch.split(stage_rows, max(1, CHECKED_BYTES // (4 * stage_rows.shape[-1]))):
            lengths = rows.float().norm(dim=-1)
            if not (((lengths - 1).abs() <= UNIT_TOLERANCE) | (lengths == 0)).all():
                raise ArtifactError(f"features.{stage} holds rows that are not of length 1; enroll the part again")
