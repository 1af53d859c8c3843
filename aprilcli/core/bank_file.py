"""A part's bank on disk: the schema of its JSON fields and tensors."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import AfterValidator, Field, Strict

from aprilcli.core.calibration import LARGEST, Calibration, CalibrationMethod
from aprilcli.core.memory_bank import ROTATIONS, CalibrationImages, MemoryBank, Recipe, Source
from aprilcli.core.quantization import QuantizationImages
from aprilcli.core.score_choice import ScoreChoice, variants
from aprilcli.core.tiling import lay_out
from aprilcli.errors import ArtifactError, InputError, OutputError
from aprilcli.io.artifacts import Artifact, Schema, TensorSpec, parse, read_artifact, write_artifact
from aprilcli.types import (
    MAX_OBJECT_NAME,
    WINDOWS,
    Evidence,
    ImageEvidence,
    ModelSpec,
    Number,
    Size,
    TileLayout,
    Views,
    one_line,
)

KIND = "bank"
MAX_THUMBNAIL = 2**20  # bytes
CHECKED_BYTES = 8 * 1024**2  # of rows checked at a time
UNIT_TOLERANCE = 0.01  # of rows' lengths: float16 rounds them by a tenth of that
MEASURED = ("appearances", "fits", "spacings")  # tensors with rows for each source
QUANTIZATION = "quantization_images"  # the tensor of their pixels
LONGEST_TOKEN = 1e8  # far above the length of any token
THUMBNAILS = "thumbnails"  # the tensor of their bytes, one after another
LONGEST = 1 + UNIT_TOLERANCE  # elements of unit rows

_Side = Annotated[Size, Field(le=2**24)]  # of an image with tiles, which are laid out before their rows are counted


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
    further_sizes: tuple[Size, ...] = ()
    tile: Size | None = None
    source_sizes: tuple[tuple[_Side, _Side], ...] = ()  # height and width of each source, with tiles
    stage_weights: tuple[Annotated[Number, Field(gt=0, lt=LARGEST)], ...] = ()
    thumbnail_bytes: tuple[Annotated[int, Strict(), Field(ge=0, le=MAX_THUMBNAIL)], ...] = ()  # length of each
    choice: ScoreChoice | None = None

    def __post_init__(self) -> None:
        """Check sizes and tiles. Raises ValueError."""
        parse(Views, asdict(self.views))
        if self.tile is not None and self.tile < self.spec.image_size:
            raise ValueError(f"a tile of {self.tile} pixels, but an image_size of {self.spec.image_size}")
        if len(self.source_sizes) != (0 if self.tile is None else len(self.sources)):
            raise ValueError(f"{len(self.sources)} sources but {len(self.source_sizes)} source_sizes")
        if self.choice is not None and self.choice.score not in variants(len(self.spec.stages)):
            raise ValueError(f"score {self.choice.score} of a model with {len(self.spec.stages)} stages")
        if len(self.stage_weights) not in (0, len(self.rows_per_source)):
            raise ValueError(f"{len(self.rows_per_source)} stages but {len(self.stage_weights)} stage_weights")

    @property
    def views(self) -> Views:
        """The views of each source."""
        return Views((self.spec.image_size, *self.further_sizes), self.tile)

    @property
    def layouts(self) -> tuple[TileLayout, ...]:
        """The tiles of each source; empty without tiles."""
        if self.tile is None:
            return ()
        return tuple(lay_out(size_hw, self.tile, self.spec.image_size) for size_hw in self.source_sizes)


# Optional fields, which are left out where they say nothing.
_OPTIONAL = (
    "calibration_method",
    "calibration_sources",
    "further_sizes",
    "tile",
    "source_sizes",
    "stage_weights",
    "thumbnail_bytes",
    "choice",
)


def _tensors(fields: _Fields) -> dict[str, TensorSpec]:
    count, stages = len(fields.sources), len(fields.spec.stages)
    further, appearance = len(fields.calibration_sources), sum(fields.spec.stage_widths)
    copies = ROTATIONS if fields.recipe.rotations else 1
    specs = {
        "appearances": TensorSpec((count * copies, appearance), low=-LONGEST, high=LONGEST, optional=True),
        "fits": TensorSpec((count,), low=-LARGEST, high=LARGEST, optional=True),
        "spacings": TensorSpec((count,), low=0, high=2, optional=True),
    }
    sizes = fields.views.sizes
    inputs = [count] * len(sizes) + [sum(map(len, fields.layouts))] * (fields.tile is not None)
    for view, view_inputs in enumerate(inputs):
        specs[_of_view("text_scores", view)] = TensorSpec((view_inputs,), low=0, high=1, optional=True)
        unit = TensorSpec((view_inputs * copies, fields.spec.joint_width), low=-LONGEST, high=LONGEST, optional=True)
        specs[_of_view("image_features", view)] = unit
        for side in WINDOWS:
            shape = (view_inputs * copies, None, None, fields.spec.joint_width)
            specs[_of_view(f"windows.{side}", view)] = TensorSpec(shape, low=-LONGEST, high=LONGEST, optional=True)
        for stage, width in enumerate(fields.spec.stage_widths, start=view * stages):
            specs[f"features.{stage}"] = TensorSpec((None, width), ("F32", "F16"))
            specs[f"norms.{stage}"] = TensorSpec((None,), low=0, high=LONGEST_TOKEN, optional=True)
            specs[f"logits.{stage}"] = TensorSpec((view_inputs, None, None), low=-LARGEST, high=LARGEST, optional=True)
    if fields.calibration_method is not None:
        specs |= {f"calibration.{name}": TensorSpec((None,)) for name in ("scores", "map_maxima")}
        specs["calibration.distances"] = TensorSpec((None,), optional=True)
    if further:
        for view, size in enumerate(sizes if fields.tile is None else ()):
            specs[_of_view("calibration_images.pixels", view)] = TensorSpec((further, size, size, 3), ("U8",))
        specs["calibration_images.appearances"] = TensorSpec((further, appearance), low=-LONGEST, high=LONGEST)
    if fields.recipe.precision == "int8":
        side = max(sizes)
        specs[QUANTIZATION] = TensorSpec((None, side, side, 3), ("U8",))
    if fields.thumbnail_bytes:
        specs[THUMBNAILS] = TensorSpec((sum(fields.thumbnail_bytes),), ("U8",))
    return specs


def _of_view(name: str, view: int) -> str:
    return f"{name}.{view}" if view else name


SCHEMA = Schema(KIND, _Fields, _tensors, "enroll the part again")


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
    layouts = [image.layout for image in bank.zero_shot if image.layout is not None]
    described = _Fields(
        spec=bank.spec,
        object=bank.object_name,
        sources=bank.sources,
        rows_per_source=bank.rows_per_source,
        coreset_fraction=bank.coreset_fraction,
        recipe=bank.recipe,
        calibration_method=None if bank.calibration is None else bank.calibration.method,
        calibration_sources=() if bank.calibration_images is None else bank.calibration_images.sources,
        further_sizes=bank.further_sizes,
        tile=bank.tile,
        source_sizes=tuple(layout.size_hw for layout in layouts),
        stage_weights=bank.stage_weights,
        thumbnail_bytes=tuple(map(len, bank.thumbnails)) if any(bank.thumbnails) else (),
        choice=bank.choice,
    )
    fields = {name: value for name, value in asdict(described).items() if value or name not in _OPTIONAL}
    for view, parts in enumerate(zip(*(image.views for image in bank.zero_shot), strict=True)):
        evidence = Evidence.concatenate(parts)
        tensors[_of_view("text_scores", view)] = evidence.text_scores
        first = view * len(bank.spec.stages)
        tensors |= {f"logits.{stage}": logits for stage, logits in enumerate(evidence.logits, start=first)}
    tensors |= {f"norms.{stage}": norms for stage, norms in enumerate(bank.norms)}
    tensors |= {_of_view("image_features", view): rows for view, rows in enumerate(bank.image_features)}
    for view, scales in enumerate(bank.windows):
        tensors |= {_of_view(f"windows.{side}", view): rows for side, rows in zip(WINDOWS, scales, strict=False)}
    tensors |= {n: values for n in MEASURED if (values := getattr(bank, n)) is not None}
    if bank.calibration_images is not None:
        pixels = enumerate(bank.calibration_images.pixels)
        tensors |= {_of_view("calibration_images.pixels", view): values for view, values in pixels}
        tensors["calibration_images.appearances"] = bank.calibration_images.appearances
    if bank.quantization is not None:
        tensors[QUANTIZATION] = torch.from_numpy(bank.quantization.pixels)
    if described.thumbnail_bytes:
        tensors[THUMBNAILS] = torch.frombuffer(bytearray(b"".join(bank.thumbnails)), dtype=torch.uint8)
    if bank.calibration is not None:
        arrays = bank.calibration.to_arrays()
        tensors |= {f"calibration.{name}": torch.tensor(values) for name, values in arrays.items()}
    return tensors, fields


def _bank(artifact: Artifact[_Fields]) -> MemoryBank:
    """Rebuild what ``to_artifact`` was given. Raises ArtifactError without the path."""
    fields, tensors = artifact.content, artifact.tensors
    views = range(len(fields.views))
    features = tuple(tensors[f"features.{stage}"] for stage in range(len(fields.views) * len(fields.spec.stages)))
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
        names = (_of_view("calibration_images.pixels", view) for view in range(len(fields.views)))
        pixels = tuple(tensors[name] for name in names if name in tensors)
        images = CalibrationImages(fields.calibration_sources, pixels, tensors["calibration_images.appearances"])
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
        zero_shot=_zero_shot(fields, tensors) if "text_scores" in tensors else (),
        **{name: tensors.get(name) for name in MEASURED},
        calibration_images=images,
        further_sizes=fields.further_sizes,
        tile=fields.tile,
        stage_weights=fields.stage_weights,
        quantization=QuantizationImages(tensors[QUANTIZATION].numpy()) if QUANTIZATION in tensors else None,
        thumbnails=_thumbnails(fields, tensors),
        choice=fields.choice,
        norms=tuple(tensors[name] for stage in range(len(features)) if (name := f"norms.{stage}") in tensors),
        image_features=tuple(tensors[n] for v in views if (n := _of_view("image_features", v)) in tensors),
        windows=tuple(filter(None, (_windows(tensors, view) for view in views))),
    )


def _windows(tensors: Mapping[str, torch.Tensor], view: int) -> tuple[torch.Tensor, ...]:
    names = (_of_view(f"windows.{side}", view) for side in WINDOWS)
    return tuple(tensors[name] for name in names if name in tensors)


def _thumbnails(fields: _Fields, tensors: Mapping[str, torch.Tensor]) -> tuple[bytes, ...]:
    if not fields.thumbnail_bytes:
        return ()
    content = tensors[THUMBNAILS].numpy().tobytes()
    ends = list(itertools.accumulate(fields.thumbnail_bytes))
    return tuple(content[end - length : end] for end, length in zip(ends, fields.thumbnail_bytes, strict=True))


def _zero_shot(fields: _Fields, tensors: Mapping[str, torch.Tensor]) -> tuple[ImageEvidence, ...]:
    """Rebuild the evidence of each source. Raises ArtifactError for a file without that of some views."""
    count, stages, layouts = len(fields.sources), len(fields.spec.stages), fields.layouts
    views: list[list[Evidence]] = []
    for view in range(len(fields.views)):
        if _of_view("text_scores", view) not in tensors:
            raise ArtifactError(f"lacks {_of_view('text_scores', view)}; enroll the part again")
        logits = (f"logits.{stage}" for stage in range(view * stages, (view + 1) * stages))
        evidence = Evidence(
            tensors[_of_view("text_scores", view)], tuple(tensors[name] for name in logits if name in tensors)
        )
        inputs = [1] * count if view < len(fields.views.sizes) else list(map(len, layouts))
        ends = list(itertools.accumulate(inputs))
        views.append([evidence[end - number : end] for end, number in zip(ends, inputs, strict=True)])
    images = zip(zip(*views, strict=True), layouts or (None,) * count, strict=True)
    return tuple(ImageEvidence(parts, layout) for parts, layout in images)


def _check_lengths(features: tuple[torch.Tensor, ...]) -> None:
    """Refuse rows that are neither of unit length nor zero: their distances would be meaningless."""
    for stage, stage_rows in enumerate(features):
        for rows in torch.split(stage_rows, max(1, CHECKED_BYTES // (4 * stage_rows.shape[-1]))):
            lengths = rows.float().norm(dim=-1)
            if not (((lengths - 1).abs() <= UNIT_TOLERANCE) | (lengths == 0)).all():
                raise ArtifactError(f"features.{stage} holds rows that are not of length 1; enroll the part again")
