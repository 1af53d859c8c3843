"""Where a part's bank stands, and how it gets there and back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from aprilcli.core.calibration import LARGEST, Calibration
from aprilcli.core.memory_bank import MAX_PATH, MemoryBank, Recipe, Source
from aprilcli.errors import ArtifactError, InputError, OptionError
from aprilcli.io.artifacts import Artifact, ArtifactHeader, read_artifact, write_artifact
from aprilcli.text import printable
from aprilcli.types import CONTROL, MAX_OBJECT_NAME, Evidence, ModelSpec

KIND = "bank"
SUFFIX = ".safetensors"
PART_NAME = re.compile(r"\w[\w.-]{0,99}")
CHECKED_BYTES = 8 * 1024**2  # of rows checked at a time
UNIT_TOLERANCE = 0.01  # of rows' lengths: float16 rounds them by a tenth of that


def bank_path(part: str, banks: Path) -> Path:
    """Return where a bank to be read stands: ``part`` itself if it names a file, else where ``new_bank_path`` says."""
    return Path(part) if part.endswith(SUFFIX) else new_bank_path(part, banks)


def new_bank_path(part: str, banks: Path) -> Path:
    """Return where a part's bank belongs, ``banks/NAME.safetensors``.

    Raises OptionError for a name that could leave the folder or confuse a shell.
    """
    if not PART_NAME.fullmatch(part) or ".." in part:
        raise OptionError(f"--part {part!r}: a part's name becomes a file's; use letters, digits, '_', '-' and '.'")
    return banks / f"{part}{SUFFIX}"


def save_bank(bank: MemoryBank, path: Path) -> None:
    """Write a bank aside, then rename it: an interrupted write leaves the old one whole. Raises OutputError."""
    tensors, fields = to_artifact(bank)
    on_disk = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_artifact(path, KIND, on_disk, fields, created=bank.created)


def load_bank(path: Path) -> MemoryBank:
    """Read a bank back, its pieces checked against each other. Raises InputError or ArtifactError."""
    with suppress(OSError):  # a name too long, a folder without rights: the reader says which
        if not path.exists():
            raise InputError(f"{path}: there is no such bank; make one with: aprilcli enroll PHOTOS --part NAME")

    def check(header: ArtifactHeader) -> None:
        with _naming(path):
            check_names(header.shapes, header.fields)

    artifact = read_artifact(path, KIND, check)
    with _naming(path):
        return from_artifact(artifact)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def to_artifact(bank: MemoryBank) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return tensors and JSON-ready fields to be written; ``from_artifact`` reads them back."""
    tensors = {f"features.{stage}": rows for stage, rows in enumerate(bank.features)}
    fields: dict[str, Any] = {
        "spec": bank.spec.to_json(),
        "object": bank.object_name,
        "sources": [asdict(source) for source in bank.sources],
        "rows_per_source": bank.rows_per_source,
        "coreset_fraction": bank.coreset_fraction,
        "recipe": asdict(bank.recipe),
    }
    if bank.zero_shot is not None:
        tensors["text_scores"] = bank.zero_shot.text_scores
        tensors |= {f"logits.{stage}": logits for stage, logits in enumerate(bank.zero_shot.logits)}
    if bank.calibration is not None:
        arrays = bank.calibration.to_arrays()
        tensors |= {f"calibration.{name}": torch.tensor(values) for name, values in arrays.items()}
        fields["calibration_method"] = bank.calibration.method
    return tensors, fields


def from_artifact(artifact: Artifact) -> MemoryBank:
    """Rebuild from what ``to_artifact`` gave. Raises ArtifactError, without the file's name, on anything else."""
    tensors, fields = artifact.tensors, artifact.fields
    with _foreign():
        spec = ModelSpec.from_json(fields["spec"])
        _check_values(tensors)
        calibration = None
        if "calibration_method" in fields:
            arrays = {name.removeprefix("calibration."): values.numpy() for name, values in tensors.items()}
            calibration = Calibration.from_arrays(arrays, fields["calibration_method"])
        zero_shot = None
        if "text_scores" in tensors:
            logits = (f"logits.{stage}" for stage in range(len(spec.stages)))
            zero_shot = Evidence(tensors["text_scores"], tuple(tensors[n] for n in logits if n in tensors))
        return MemoryBank(
            features=tuple(tensors[f"features.{stage}"] for stage in range(len(spec.stages))),
            rows_per_source=tuple(tuple(int(count) for count in stage) for stage in fields["rows_per_source"]),
            spec=spec,
            object_name=_object_name(fields["object"]),
            sources=tuple(_source(source["path"], source["sha256"]) for source in fields["sources"]),
            calibration=calibration,
            coreset_fraction=_share(fields["coreset_fraction"]),
            created=artifact.created,
            version=artifact.version,
            recipe=Recipe(**fields["recipe"]),
            zero_shot=zero_shot,
        )


def check_names(names: Iterable[str], fields: Mapping[str, Any]) -> None:
    """Refuse tensors that no bank with these fields has. Raises ArtifactError, without the file's name."""
    with _foreign():
        stages = range(len(ModelSpec.from_json(fields["spec"]).stages))
        known = {"text_scores", "calibration.scores", "calibration.map_maxima"}
        known |= {f"{kind}.{stage}" for kind in ("features", "logits") for stage in stages}
        if surplus := sorted(set(names) - known):
            raise ValueError(f"a tensor {surplus[0]}")


@contextmanager
def _foreign() -> Iterator[None]:
    """Turn what values of any kind and size raise into an ArtifactError of one short line."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = printable(f"{type(error).__name__}: {error}"[:200])
        raise ArtifactError(f"not a whole bank ({reason}); enroll the part anew") from error


def _check_values(tensors: Mapping[str, torch.Tensor]) -> None:
    """Refuse values that no picture gives, and that would make scores nonsense. Raises ValueError or TypeError."""
    for name, values in tensors.items():
        kind = name.partition(".")[0]
        if not values.is_floating_point():
            raise TypeError(f"{name} holds no floats")
        if kind == "features":
            for rows in torch.split(values, max(1, CHECKED_BYTES // (4 * values.shape[-1]))):
                lengths = rows.float().norm(dim=-1)
                if not (((lengths - 1).abs() <= UNIT_TOLERANCE) | (lengths == 0)).all():
                    raise ValueError(f"{name} holds rows of other lengths than 1")
        elif kind == "text_scores" and not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} lie outside 0 to 1")
        elif kind == "logits" and not (values.abs() <= LARGEST).all():
            raise ValueError(f"{name} holds values beyond {LARGEST:g}")


def _object_name(name: Any) -> str:
    if not isinstance(name, str) or len(name) > MAX_OBJECT_NAME or CONTROL.search(name):
        raise ValueError(f"its object's name is no text of at most {MAX_OBJECT_NAME} characters")
    return name


def _source(path: Any, sha256: Any) -> Source:
    # Bytes that are not UTF-8 stand as surrogates from \udc80 on (os.fsdecode); no others come from a file's name.
    if not isinstance(path, str) or len(path) > MAX_PATH or re.search("[\ud800-\udc7f\udd00-\udfff]", path):
        raise ValueError("a source's path is no path")
    if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
        raise ValueError("a source's sha256 is none")
    return Source(path, sha256)


def _share(value: Any) -> float:
    share = float(value)
    if not 0 < share <= 1:
        raise ValueError(f"a share of {share:g} of its rows")
    return share
