"""labels.csv: which images a person has labeled good or defect, as the report of a scan saves it.

RFC 4180, UTF-8, with or without a byte order mark; a column ``path`` (relative to the scanned folder, or to
``walk.base_of`` several, with ``/``) and a column ``label``.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from aprilcli.errors import InputError
from aprilcli.io.datasets import GOOD, LabeledDataset, LabeledImage, LabeledObject
from aprilcli.io.walk import FoundImage, LeftOut, base_of, find_images, require_paths
from aprilcli.text import listed, printable, quoted

DEFECT = "defect"
COLUMNS = ("path", "label")
LISTED = 5  # images that an error names; the others are counted


def read_labels(table: Path) -> dict[str, str]:
    """Return the label of each image, ``GOOD`` or ``DEFECT``, by its relative path.

    Raises InputError for a file that cannot be read, has no header or no rows, for a label or path that cannot be used,
    and for an image with two labels.
    """
    labels: dict[str, str] = {}
    for line, row in _rows(table):
        path, label = (row.get(column) for column in COLUMNS)
        where = f"{printable(table)} line {line}"
        if not path or label is None:
            raise InputError(f"{where}: needs a path and a label; correct it")
        name = PurePosixPath(path)
        if name.is_absolute() or ".." in name.parts:
            raise InputError(f"{where}: {printable(path)} leads out of the folder; give a path relative to it")
        known = label.strip().casefold()
        if known not in (GOOD, DEFECT):
            raise InputError(f"{where}: unknown label {quoted(label)}; use {GOOD} or {DEFECT}")
        if labels.setdefault(str(name), known) != known:
            raise InputError(f"{where}: {printable(path)} is labeled {GOOD} and {DEFECT}; remove one of the rows")
    if not labels:
        raise InputError(f"{printable(table)}: no image is labeled; label some images first")
    return labels


def _rows(table: Path) -> Iterator[tuple[int, dict[str | None, str | None]]]:
    """Yield the rows with the number of their line."""
    try:
        # Names of files may contain bytes that are not UTF-8.
        with table.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            header = reader.fieldnames or []
            if not set(COLUMNS) <= set(header):
                found = quoted(",".join(header)) if header else "none"
                raise InputError(f"{printable(table)}: needs the header {','.join(COLUMNS)}, found {found}; add it")
            for row in reader:
                yield reader.line_num, row
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{printable(table)}: cannot be read ({reason}); give a labels.csv") from error


def find_labeled(images: Iterable[FoundImage], labels: Mapping[str, str], table: Path) -> dict[FoundImage, str]:
    """Return the labeled images among those found, in their order, with their labels.

    Raises InputError if a labeled image is not among them; a folder that could not be listed is named.
    """
    images = list(images)
    found = {image: labels[image.relative] for image in images if image.relative in labels}
    missing = sorted(set(labels) - {image.relative for image in found})
    if missing:
        reason = next((f" ({image.error})" for image in images if image.error is not None), "")
        count = "1 labeled image is" if len(missing) == 1 else f"{len(missing)} labeled images are"
        raise InputError(
            f"{printable(table)}: {count} not in the given folder: {listed(missing, LISTED)}; give the folder that was "
            f"scanned, or remove the rows{reason}"
        )
    return found


def labeled_dataset(table: Path, root: Path, *, follow: bool = False) -> LabeledDataset:
    """Return the labeled images of a folder as a data set of one object with the folder's name, without masks.

    ``follow``: enter linked folders. Raises InputError as ``read_labels`` and ``find_labeled`` do, and for a folder
    that does not exist.
    """
    labels = read_labels(table)
    require_paths(root)
    left_out: dict[str, LeftOut] = {}
    images = list(find_images(root, follow=follow, on_left_out=left_out.__setitem__))
    tested = tuple(
        LabeledImage(image.path, label, int(label == DEFECT))
        for image, label in find_labeled(images, labels, table).items()
    )
    folder = base_of(root)
    others = len(images) - len(tested)
    return LabeledDataset(
        layout="labels",
        root=folder,
        objects=(LabeledObject(folder.resolve().name, (), tested),),
        problems=(),
        notes=(f"images without a label, which are left out: {others}",) if others else (),
        left_out=tuple(left_out.items()),
    )
