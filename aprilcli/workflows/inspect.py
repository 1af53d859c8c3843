"""`inspect`: shows what a bank, projector or map file contains, and how it was made; draws a bank's references."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
import torch

from aprilcli.core.bank_file import KIND as BANK
from aprilcli.core.bank_file import load_bank
from aprilcli.core.memory_bank import MemoryBank, Source
from aprilcli.core.outliers import find_outliers
from aprilcli.defaults import APRIL_GAN
from aprilcli.errors import ArtifactError, InputError, OptionError, OutputError
from aprilcli.io.artifacts import PICKLE_STARTS, UNDATED, ArtifactHeader, as_read_errors, read_header
from aprilcli.io.atomic import check_writable, output_errors
from aprilcli.io.contact_sheet import FORMATS, Entry, write_sheet
from aprilcli.io.files import size_of_file
from aprilcli.io.image_formats import HEAD, format_of
from aprilcli.io.images import DECODER_ERRORS
from aprilcli.options import InspectOptions
from aprilcli.text import first_line, printable
from aprilcli.types import Views

TIFF_SUFFIXES = (".tif", ".tiff")
LONGEST = 1000  # characters of a value
LONGEST_NAME = 24  # characters that values are aligned to
LEVEL = "pixel_threshold"  # in the description of a map: the value from which pixels alarm
KNOWN_TEXTS = {".csv": "a CSV table", ".json": "a JSON record"}
ADVICE = "give a bank, a projector (.safetensors) or a map of a scan (.tiff)"

Rows = Iterator[tuple[str, Any]]


def run_inspect(options: InspectOptions) -> str:
    """Return a line for each fact about the file; write the contact sheet if wanted. Raises the package's errors."""
    path, sheet = options.file, options.sheet
    if sheet is not None:
        _check_sheet(sheet, options.overwrite)
    head = _read_head(path)
    is_map = path.suffix.lower() in TIFF_SUFFIXES or format_of(head) == "TIFF"
    if not is_map and (kind := _foreign_kind(path, head)) is not None:
        raise ArtifactError(f"{path}: is {kind}; {ADVICE}")
    header = None if is_map else read_header(path)
    bank = load_bank(path) if header is not None and header.kind == BANK else None
    if sheet is not None:
        if bank is None:
            raise OptionError(
                f"--sheet: {path} is a {'map' if header is None else header.kind}; only a bank has images"
            )
        _write_sheet(sheet, path, bank)
    facts = _map_rows(path) if header is None else _artifact_rows(header, bank)
    rows = [(_shown(name), _shown(value)) for name, value in facts]
    width = min(LONGEST_NAME, max(len(name) for name, _ in rows))
    return "\n".join([printable(path), *(f"  {name:<{width}}  {value}".rstrip() for name, value in rows)])


def _check_sheet(sheet: Path, overwrite: bool) -> None:
    if sheet.suffix.lower() not in FORMATS:
        raise OptionError(f"--sheet {sheet}: writes a JPEG or PNG; give a name that ends in .jpg or .png")
    check_writable(sheet.parent)
    with output_errors(sheet):
        if sheet.exists() and not (overwrite and sheet.is_file()):
            raise OutputError(f"{sheet}: already exists; choose another --sheet, or replace a file with --overwrite")


def _write_sheet(sheet: Path, path: Path, bank: MemoryBank) -> None:
    if not bank.thumbnails:
        raise InputError(f"{path}: an earlier version made it, without thumbnails of its images; enroll the part again")
    scores = None if bank.fits is None else bank.fits.numpy()
    outliers = [] if scores is None else find_outliers(scores)
    entries = [
        Entry(
            number=position + 1,
            name=source.path,
            thumbnail=thumbnail,
            score=None if scores is None else float(scores[position]),
            is_outlier=position in outliers,
        )
        for position, (source, thumbnail) in enumerate(zip(bank.sources, bank.thumbnails, strict=True))
    ]
    order = "" if scores is None else ", those that differ most first"
    try:
        write_sheet(sheet, f"{path.stem}: {len(entries)} references of {bank.object_name}{order}", entries)
    except ArtifactError as error:
        raise ArtifactError(f"{path}: {error}") from error


def _read_head(path: Path) -> bytes:
    with as_read_errors(path):
        size_of_file(path)
        if path.is_dir():
            raise ArtifactError(f"{path}: is a folder; {ADVICE}")
        with path.open("rb") as file:
            return file.read(HEAD)


def _foreign_kind(path: Path, head: bytes) -> str | None:
    """Return what a file is that this program's users may give by mistake; None for others."""
    if (image := format_of(head)) is not None:
        return f"an image ({image})"
    text = head and not head.startswith(PICKLE_STARTS) and b"\0" not in head
    return KNOWN_TEXTS.get(path.suffix.lower(), "a text file") if text else None


def _shown(value: Any) -> str:
    """Show a value from a file as one line without control characters; long values are cut."""
    text = printable(str(value)[: LONGEST + 1])
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def _map_rows(path: Path) -> Rows:
    try:
        with tifffile.TiffFile(path) as tiff:
            values = tiff.pages[0].asarray()
            description = _read_description(tiff.pages[0].description)
            if values.ndim != 2 or values.dtype.kind != "f":
                raise ValueError(f"{values.ndim} dimensions, {values.dtype}")
            # Of the part's calibration: a number, None where the scan had none, and no key before there was one.
            levels = [description.pop(LEVEL)] if LEVEL in description else []
            level = None if levels in ([], [None]) else float(levels[0])
    except DECODER_ERRORS as error:
        raise ArtifactError(f"{path}: not a map of this program ({first_line(error)}); {ADVICE}") from error
    height, width = values.shape
    y, x = np.unravel_index(values.argmax(), values.shape)
    yield from {"holds": "map", "size": f"{width} x {height}", "type": values.dtype}.items()
    yield "range", f"{values.min():.4f} to {values.max():.4f}"
    yield "mean", f"{values.mean(dtype=np.float64):.4f}"
    yield "peak", f"{values.max():.4f} at x {x}, y {y}" + ("" if level is None else f"; pixels alarm from {level:.4f}")
    if level is not None:
        alarming = int((values >= level).sum())
        yield "alarming pixels", f"{alarming} of {values.size} ({alarming / values.size:.2%})"
    elif levels:
        yield "alarming pixels", "unknown: the scan had no level for pixels"
    yield from ((name, value) for name, value in description.items() if name != "range")


def _read_description(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise ValueError("a TIFF image without the description of a map") from error


def _artifact_rows(header: ArtifactHeader, bank: MemoryBank | None) -> Rows:
    created = header.created if header.created != UNDATED else "not recorded"
    yield from {"holds": header.kind, "created": created, "by": f"aprilcli {header.version}"}.items()
    if bank is not None:
        yield from _bank_rows(bank)
        return
    for name, value in header.fields.items():
        yield from _flat(name, value)
    for name, shape in header.shapes.items():
        yield f"tensor {name}", f"{shape} {header.dtypes[name]}"


def _bank_rows(bank: MemoryBank) -> Rows:
    yield from {"object": bank.object_name, "model": bank.recipe.model}.items()
    yield from _flat("model", bank.spec.to_json())
    yield "projector", bank.recipe.projector or "the model's own"
    yield "projector fingerprint", bank.recipe.projector_fingerprint or "none"
    yield "views", bank.views.label
    yield "engine", bank.recipe.engine
    images = "" if bank.quantization is None else f", quantized on {len(bank.quantization)} images"
    yield "precision", f"{bank.recipe.precision or 'not recorded'}{images}"
    yield "method", bank.recipe.method
    if bank.recipe.method == APRIL_GAN:
        yield "fusion", bank.recipe.fusion + "".join(f" {weight:.3f}" for weight in bank.stage_weights)
        yield "score", bank.score if bank.choice is None else bank.choice.describe()
    yield "positions per source", bank.copies
    for number, features in enumerate(bank.features):
        size = features.numel() * features.element_size() / 1e6
        view, stage = divmod(number, len(bank.spec.stages))
        name = f"stage {bank.spec.stages[stage]}" + (f", {_named(bank.views, view)}" if len(bank.views) > 1 else "")
        yield name, f"{len(features)} rows of {features.shape[1]}, {features.dtype}, {size:.1f} MB"
    yield "kept by coreset", f"{bank.coreset_fraction:.1%}"
    if (scored := bank.calibration) is not None:
        yield "calibration", f"{len(scored)} scores of good images ({scored.method})"
        yield "good scores", f"{scored.scores.min():.4f} to {scored.scores.max():.4f}"
        yield "good map maxima", f"{scored.map_maxima.min():.4f} to {scored.map_maxima.max():.4f}"
    yield "references", len(bank.sources)
    label = "score" if bank.recipe.method == APRIL_GAN else f"{APRIL_GAN} score"  # fits are of the paper's method
    yield from _good_images("reference", bank.sources, bank.fits, label)
    if bank.calibration_images is not None and bank.calibration is not None:
        scores = torch.from_numpy(bank.calibration.scores.copy())
        yield from _good_images("calibration image", bank.calibration_images.sources, scores)


def _named(views: Views, view: int) -> str:
    return f"size {views.sizes[view]}" if view < len(views.sizes) else "tiles"


def _good_images(name: str, sources: tuple[Source, ...], scores: torch.Tensor | None, label: str = "score") -> Rows:
    """Yield a row for each image, with its score against the (other) references if it is known."""
    outliers = [] if scores is None else find_outliers(scores.numpy())
    for position, source in enumerate(sources):
        score = "" if scores is None else f"{label} {scores[position]:.4f}  "
        odd = "differs from the others  " if position in outliers else ""
        yield name, f"sha256 {source.sha256}  {score}{odd}{source.path}"


def _flat(name: str, value: Any) -> Rows:
    """Yield a row for each value of a JSON object, nested objects included; a list is a single value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name} {key}", inner)
    else:
        yield name, " ".join(map(str, value)) if isinstance(value, list | tuple) else value
