"""`inspect`: shows what a bank, projector or map file contains, and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from rich import box
from rich.table import Table
from rich.text import Text

from aprilcli.core.bank_file import KIND as BANK
from aprilcli.core.bank_file import load_bank
from aprilcli.errors import ArtifactError
from aprilcli.io.artifacts import UNDATED, read_header
from aprilcli.io.files import size_of_file
from aprilcli.io.images import DECODER_ERRORS
from aprilcli.text import printable

TIFF_SUFFIXES = (".tif", ".tiff")
LONGEST = 1000  # characters of a value


def describe(path: Path) -> Table:
    """Return a table of the content of ``path``. Raises ArtifactError or InputError for other files."""
    table = Table(title=_shown(path), box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    rows = _describe_map(path) if path.suffix.lower() in TIFF_SUFFIXES else _describe_artifact(path)
    for name, value in rows.items():
        table.add_row(_shown(name), _shown(value))
    return table


def _shown(value: Any) -> Text:
    """Show a value from a file literally, without markup or control characters; long values are cut."""
    text = printable(str(value)[: LONGEST + 1])
    return Text(text if len(text) <= LONGEST else text[: LONGEST - 1] + "…")


def _describe_map(path: Path) -> dict[str, Any]:
    try:
        size_of_file(path)
        with tifffile.TiffFile(path) as tiff:
            values = tiff.pages[0].asarray()
            description = dict(json.loads(tiff.pages[0].description))
            if values.ndim != 2:
                raise ValueError(f"{values.ndim} dimensions")
    except DECODER_ERRORS as error:
        reason = printable(str(error))[:200]
        raise ArtifactError(f"{path}: not a map of this tool ({reason}); give a file of maps/") from error
    rows = {"holds": "map", "size": f"{values.shape[1]} x {values.shape[0]}", "type": values.dtype}
    rows["peak"] = "x {1}, y {0}".format(*np.unravel_index(values.argmax(), values.shape))
    return {**rows, **description}


def _describe_artifact(path: Path) -> dict[str, Any]:
    header = read_header(path)
    created = header.created if header.created != UNDATED else "not recorded"
    rows: dict[str, Any] = {"holds": header.kind, "created": created, "by": f"aprilcli {header.version}"}
    if header.kind == BANK:
        return rows | _describe_bank(path)
    for name, value in header.fields.items():
        rows |= _flat(name, value)
    return rows | {f"tensor {name}": f"{shape} {header.dtypes[name]}" for name, shape in header.shapes.items()}


def _describe_bank(path: Path) -> dict[str, Any]:
    bank = load_bank(path)
    rows: dict[str, Any] = {"object": bank.object_name, "model": bank.recipe.model}
    rows |= _flat("model", bank.spec.to_json())
    rows["projector"] = bank.recipe.projector or "the model's own"
    rows["projector fingerprint"] = bank.recipe.projector_fingerprint or "none"
    for stage, features in zip(bank.spec.stages, bank.features, strict=True):
        size = features.numel() * features.element_size() / 1e6
        rows[f"stage {stage}"] = f"{len(features)} rows of {features.shape[1]}, {features.dtype}, {size:.1f} MB"
    rows["kept by coreset"] = f"{bank.coreset_fraction:.1%}"
    if (scored := bank.calibration) is not None:
        rows["calibration"] = f"{len(scored)} scores of good images ({scored.method})"
        rows["good scores"] = f"{scored.scores.min():.4f} to {scored.scores.max():.4f}"
        rows["good map maxima"] = f"{scored.map_maxima.min():.4f} to {scored.map_maxima.max():.4f}"
    rows["references"] = len(bank.sources)
    return rows | {source.path: f"sha256 {source.sha256}" for source in bank.sources}


def _flat(name: str, value: Any) -> dict[str, Any]:
    """Return a row for each value of a JSON object, nested objects included; a list is a single value."""
    if isinstance(value, dict):
        return {key: cell for inner, item in value.items() for key, cell in _flat(f"{name} {inner}", item).items()}
    return {name: " ".join(map(str, value)) if isinstance(value, list | tuple) else value}
