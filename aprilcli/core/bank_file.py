"""A part's bank on disk: its path, its JSON fields and tensors, and the checks of a file from elsewhere."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, Strict

from aprilcli.core.calibration import LARGEST, Calibration, Method
from aprilcli.core.memory_bank import MemoryBank, Recipe, Source
from aprilcli.errors import ArtifactError, InputError, OptionError
from aprilcli.io.artifacts import Artifact, ArtifactHeader, parse, read_artifact, write_artifact
from aprilcli.text import printable
from aprilcli.types import MAX_OBJECT_NAME, Evidence, ModelSpec, Number, one_line

KIND = "bank"
SUFFIX = ".safetensors"
PART_NAME = re.compile(r"\w[\w.-]{0,99}")
CHECKED_BYTES = 8 * 1024**2  # of rows checked at a time
UNIT_TOLERANCE = 0.01  # of rows' lengths: float16 rounds them by a tenth of that


def bank_path(part: str, banks: Path) -> Path:
    """Return the path of a bank to read: ``part`` itself if it names a file, else as ``new_bank_path``."""
    return Path(part) if part.endswith(SUFFIX) else new_bank_path(part, banks)


def new_bank_path(part: str, banks: Path) -> Path:
    """Return the path of a part's bank, ``banks/NAME.safetensors``.

    Raises OptionError for a name that could leave the folder or confuse a shell.
    """
    if not PART_NAME.fullmatch(part) or ".." in part:
        raise OptionError(f"--part {part!r}: the name becomes a file name; use letters, digits, '_', '-' and '.'")
    return banks / f"{part}{SUFFIX}"


def save_bank(bank: MemoryBank, path: Path) -> None:
    """Write a bank aside, then rename it: an interrupted write leaves the old bank whole. Raises OutputError."""
    tensors, fields = to_artifact(bank)
    write_artifact(path, KIND, tensors, fields, created=bank.created)


def load_bank(path: Path) -> MemoryBank:
    """Read a bank and check that its pieces fit each other. Raises InputError or ArtifactError."""
    with suppress(OSError):  # e.g. a name too long or a folder without rights: read_artifact explains it
        if not path.exists():
            raise InputError(f"{path}: there is no such bank; create it with: aprilcli enroll IMAGES --part NAME")
    return from_artifact(path, read_artifact(path, KIND, partial(_check_header, path)))


@dataclass(frozen=True)
class _Fields:
    """The JSON fields of a bank's file."""

    spec: ModelSpec
    object: Annotated[str, Field(max_length=MAX_OBJECT_NAME), AfterValidator(one_line)]
    sources: tuple[Source, ...]
    rows_per_source: tuple[tuple[Annotated[int, Strict(), Field(ge=0)], ...], ...]
    coreset_fraction: Annotated[Number, Field(gt=0, le=1)]
    recipe: Recipe
    calibration_method: Method | None = None


def to_artifact(bank: MemoryBank) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors and JSON-ready fields to write; ``from_artifact`` reads them back."""
    tensors = {f"features.{stage}": rows for stage, rows in enumerate(bank.features)}
    fields = asdict(
        _Fields(bank.spec, bank.object_name, bank.sources, bank.rows_per_source, bank.coreset_fraction, bank.recipe)
    )
    del fields["calibration_method"]
    if bank.zero_shot is not None:
        tensors["text_scores"] = bank.zero_shot.text_scores
        tensors |= {f"logits.{stage}": logits for stage, logits in enumerate(bank.zero_shot.logits)}
    if bank.calibration is not None:
        arrays = bank.calibration.to_arrays()
        tensors |= {f"calibration.{name}": torch.tensor(values) for name, values in arrays.items()}
        fields["calibration_method"] = bank.calibration.method
    return tensors, fields


def from_artifact(path: Path, artifact: Artifact) -> MemoryBank:
    """Rebuild what ``to_artifact`` was given; ``path`` is named in errors. Raises ArtifactError for other content."""
    with _as_artifact_errors(path):
        fields, tensors = parse(_Fields, artifact.fields), artifact.tensors
        stages = range(len(fields.spec.stages))
        _check_values(tensors)
        calibration = None
        if fields.calibration_method is not None:
            arrays = {name.removeprefix("calibration."): values.numpy() for name, values in tensors.items()}
            calibration = Calibration.from_arrays(arrays, fields.calibration_method)
        zero_shot = None
        if "text_scores" in tensors:
            logits = (f"logits.{stage}" for stage in stages)
            zero_shot = Evidence(tensors["text_scores"], tuple(tensors[name] for name in logits if name in tensors))
        return MemoryBank(
            features=tuple(tensors[f"features.{stage}"] for stage in stages),
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
        )


def _check_header(path: Path, header: ArtifactHeader) -> None:
    """Refuse tensors that a bank with these fields does not have. Raises ArtifactError."""
    with _as_artifact_errors(path):
        stages = range(len(parse(_Fields, header.fields).spec.stages))
        known = {"text_scores", "calibration.scores", "calibration.map_maxima"}
        known |= {f"{kind}.{stage}" for kind in ("features", "logits") for stage in stages}
        if surplus := sorted(header.shapes.keys() - known):
            raise ValueError(f"unexpected tensor {surplus[0]}")


@contextmanager
def _as_artifact_errors(path: Path) -> Iterator[None]:
    """Turn the errors that foreign values cause into an ArtifactError of one short line."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except (LookupError, TypeError, ValueError) as error:
        reason = f"tensor {error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise ArtifactError(f"{path}: not a whole bank ({printable(reason[:200])}); enroll the part again") from error


def _check_values(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse values that no image gives and that would make scores meaningless. Raises ValueError."""
    for name, values in tensors.items():
        kind = name.partition(".")[0]
        if not values.is_floating_point():
            raise ValueError(f"{name} does not hold floats")
        if kind == "features":
            for rows in torch.split(values, max(1, CHECKED_BYTES // (4 * values.shape[-1]))):
                lengths = rows.float().norm(dim=-1)
                if not (((lengths - 1).abs() <= UNIT_TOLERANCE) | (lengths == 0)).all():
                    raise ValueError(f"{name} holds rows that are not of length 1")
        elif kind == "text_scores" and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} holds values outside 0 to 1")
        elif kind == "logits" and not (values.abs() <= LARGEST).all():
            raise ValueError(f"{name} holds values beyond {LARGEST:g}")
