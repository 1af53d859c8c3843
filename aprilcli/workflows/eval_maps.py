"""The maps of an evaluation, in the form that the evaluators of MVTec AD and MVTec AD 2 read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aprilcli.errors import InputError
from aprilcli.io import map_files
from aprilcli.io.datasets import LabeledImage


def inside(folder: Path, relative: str) -> Path:
    """Return ``folder / relative``. Raises InputError if a name from a data set would leave the folder."""
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise InputError(f"{relative}: this name leads out of the output folder; rename it in the data set")
    return folder / relative


class MapFiles:
    """Writes the maps of an object where evaluators look for them, at source size.

    MVTec AD: ``anomaly_maps/<object>/test/<defect>/<id>.tiff``, float32. MVTec AD 2:
    ``anomaly_images/<object>/test_public/<defect>/<id>.tiff``, float16. The id is the path of an image below its label,
    without suffix; with suffix if two would be the same.
    """

    def __init__(
        self,
        out: Path,
        object_name: str,
        layout: str,
        images: Sequence[LabeledImage],
        description: Mapping[str, Any],
    ) -> None:
        """Name the files of ``images``; each gets the ``description``. Raises InputError if a name leads outside."""
        self._is_ad2 = layout == "ad2"
        self._description = dict(description)
        self._paths = [inside(out, name) for name in map_names(object_name, layout, images)]

    def write(self, position: int, anomaly_map: NDArray[np.float32]) -> None:
        """Write the map [H, W] of the image at ``position``. Raises OutputError."""
        values = anomaly_map.astype(np.float16) if self._is_ad2 else anomaly_map
        map_files.write_map(self._paths[position], values, self._description)


def map_names(object_name: str, layout: str, images: Sequence[LabeledImage]) -> list[str]:
    """Return the file of each image's map, relative to the output folder; all are different."""
    folder, split = ("anomaly_images", "test_public") if layout == "ad2" else ("anomaly_maps", "test")
    return [f"{folder}/{object_name}/{split}/{name}.tiff" for name in _names_in_split(images)]


def _names_in_split(images: Sequence[LabeledImage]) -> list[str]:
    """Return ``<defect>/<id>`` of each image, all different."""
    parents: dict[str, list[str]] = {}
    for image in images:
        parents.setdefault(image.defect, []).append(str(image.path.parent))
    tops = {defect: os.path.commonpath(folders) for defect, folders in parents.items()}
    whole = [f"{image.defect}/{image.path.relative_to(tops[image.defect]).as_posix()}" for image in images]
    short = [name.removesuffix(Path(name).suffix) for name in whole]
    count = Counter(short)
    return [brief if count[brief] == 1 else name for brief, name in zip(short, whole, strict=True)]
