"""Labeled folders: which images are good, which show which defect, and which masks belong to them.

========  ==========================================================================================================
mvtec     ``<object>/train/good``, ``test/{good,<defect>}``, ``ground_truth/<defect>/<stem>_mask.png``: MVTec AD, MPDD;
          masks may lack ``_mask``, as in the MVTec-like conversion of VisA
loco      the same with ``validation/good`` and a folder of masks per image: MVTec LOCO
btad      ``<object>/train/ok``, ``test/{ok,ko}``, ``ground_truth/ko/<stem>.png`` (or .bmp): BTAD
ad2       ``<object>/train/good``, ``validation/good``, ``test_public/{good,bad,ground_truth/bad/<stem>_mask.png}``:
          MVTec AD 2; its private test images are not read
visa      ``<object>/Data/...`` and ``split_csv/1cls.csv``: VisA as published
folder    ``<object>/<label>/...``, good labels named good, normal or ok in any case; also below ``test``. Masks,
          if any, in ``ground_truth``, ``masks`` or ``mask``, with or without a folder per label. Good training images
          are those in ``train/<good>``, or those in ``<good>`` if there is a ``<good>_test`` next to it
========  ==========================================================================================================

The root is one object, a set of objects, or a set of such sets. Masks are assigned to images by name, never by order:
``<stem>``, ``<stem>_mask``, or all files in a folder ``<stem>``, which are combined.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path, PurePath

from aprilcli.defaults import LAYOUTS
from aprilcli.errors import InputError, OptionError
from aprilcli.io.image_formats import has_image_extension

GOOD = "good"  # the ``defect`` of normal images

_GOOD_NAMES = frozenset({"good", "normal", "ok"})
_MASK_FOLDERS = ("ground_truth", "masks", "mask")
_NOT_LABELS = frozenset({*_MASK_FOLDERS, "train", "test", "validation"})
_VISA_TABLE = Path("split_csv", "1cls.csv")
_VISA_COLUMNS = ("object", "split", "label", "image", "mask")
_LOOKED_FOR = (
    "train/good with test/<defect> (mvtec, loco), train/ok with test/ko (btad), test_public (ad2), "
    "split_csv/1cls.csv (visa), or a folder per label, one of them good, normal or ok (folder)"
)


@dataclass(frozen=True)
class LabeledImage:
    """A test image. ``label``: 1 is anomalous; ``defect``: its kind, or ``good``; ``mask_paths``: to be combined."""

    path: Path
    defect: str
    label: int
    mask_paths: tuple[Path, ...] = ()

    @property
    def has_mask(self) -> bool:
        """Whether ``read_mask`` can return its anomalous pixels: a good image needs no file for that."""
        return self.label == 0 or bool(self.mask_paths)


@dataclass(frozen=True)
class LabeledObject:
    """An object; its images are sorted. ``name``: its folder below the root.

    ``train_good``: good training images; ``validation_good``: further good images, for calibration.
    """

    name: str
    train_good: tuple[Path, ...]
    test: tuple[LabeledImage, ...]
    validation_good: tuple[Path, ...] = ()

    @property
    def category(self) -> str:
        """Its name in the prompts: the last part of ``name``."""
        return self.name.rpartition("/")[2]


@dataclass(frozen=True)
class LabeledDataset:
    """What was recognized below ``root``; ``problems``: a line for each file that is missing or not used."""

    layout: str
    root: Path
    objects: tuple[LabeledObject, ...]
    problems: tuple[str, ...]


def read_dataset(root: Path, layout: str = "auto") -> LabeledDataset:
    """Find the objects, images and masks of a labeled folder, without opening an image.

    ``layout``: one of ``LAYOUTS``, or ``auto`` to recognize it. Dotfiles are skipped. Raises OptionError for an unknown
    layout; InputError if the folder does not exist, does not fit the layout, or has objects of different layouts.
    """
    if layout not in ("auto", *LAYOUTS):
        raise OptionError(f"unknown layout {layout}; choose auto, {', '.join(LAYOUTS)}")
    try:
        is_folder = root.is_dir()
    except OSError as error:  # the name is too long, or a folder above is not accessible
        raise InputError(f"{root}: cannot be accessed ({error.strerror}); check the path") from error
    if not is_folder:
        raise InputError(f"{root}: no such folder; give a folder of labeled images")
    table = _visa_table(root) if layout in ("auto", "visa") else None
    if table is not None:
        notes = _Notes(table.parents[1], [])
        return LabeledDataset("visa", root, tuple(_read_visa(table, root, notes)), tuple(notes.problems))
    found, others = _find_objects(root, layout)
    layouts = sorted(set(found.values()))
    if not layouts:
        raise InputError(f"{root}: no labeled folder ({layout}); looked for {_LOOKED_FOR}; found {_listing(root)}")
    if len(layouts) > 1:
        examples = ", ".join(f"{next(f for f in found if found[f] == name)} is {name}" for name in layouts)
        raise InputError(f"{root}: objects of different layouts ({examples}); choose one layout, or give one object")
    notes = _Notes(root, [])
    for folder in others:
        notes.add(folder, f"not an object of layout {layouts[0]}; left out")
    objects = tuple(_read_object(folder, layouts[0], notes) for folder in found)
    return LabeledDataset(layouts[0], root, objects, tuple(notes.problems))


@dataclass(frozen=True)
class _Notes:
    """Collects problems, with paths relative to the root."""

    root: Path
    problems: list[str]

    def add(self, path: Path, message: str) -> None:
        self.problems.append(f"{self.name(path)}: {message}")

    def name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _find_objects(root: Path, layout: str) -> tuple[dict[Path, str], list[Path]]:
    """Return the objects at the first depth that has any, each with its layout, and the other folders there."""
    level = [root]
    for _ in range(3):
        found = {folder: name for folder in level if (name := _layout_of(folder, layout))}
        if found:
            return found, [folder for folder in level if folder not in found]
        level = [child for folder in level for child in _folders(folder)]
    return {}, []


def _layout_of(folder: Path, layout: str) -> str | None:
    """Return the layout that ``folder`` fits as an object: the given one, or with ``auto`` the first."""
    has_test = (folder / "test").is_dir()
    is_mvtec = has_test and ((folder / "train" / "good").is_dir() or (folder / "test" / "good").is_dir())
    is_loco = (folder / "validation" / "good").is_dir() or any(
        _folders(kind) for kind in _folders(folder / "ground_truth")
    )
    fits = {
        "ad2": (folder / "test_public").is_dir(),
        "btad": has_test and ((folder / "train" / "ok").is_dir() or (folder / "test" / "ok").is_dir()),
        "loco": is_mvtec and (is_loco or layout == "loco"),
        "mvtec": is_mvtec,
        "folder": bool(_good_folders(folder) or _good_folders(folder / "test")),
    }
    return next((name for name, does in fits.items() if does and layout in ("auto", name)), None)


def _read_object(folder: Path, layout: str, notes: _Notes) -> LabeledObject:
    test = folder / ("test_public" if layout == "ad2" else "test")
    if layout == "folder" and not _good_folders(test):
        test = folder
    mask_folders = [f for parent in dict.fromkeys((folder, test)) for f in _folders(parent) if f.name in _MASK_FOLDERS]
    for other in mask_folders[1:]:
        notes.add(other, f"masks are read from {notes.name(mask_folders[0])} instead; left out")
    labels = [label for label in _folders(test) if label.name not in _NOT_LABELS]
    train = _good_folders(folder / "train")
    if layout == "folder" and any(label.name.casefold().endswith("_test") and _is_good(label) for label in labels):
        good = [label for label in labels if label.name.casefold() in _GOOD_NAMES]
        train, labels = train + good, [label for label in labels if label not in good]
    for other in (f for f in _folders(folder / "train") if f not in train):
        notes.add(other, "training images that are not good; left out")
    for parent in dict.fromkeys((folder, folder / "train", test)):
        for stray in (p for p in _children(parent) if p.is_file() and has_image_extension(p.name)):
            notes.add(stray, "an image outside the label folders; left out")
    images = {path: label for label in labels for path in _images(label, notes)}
    masks = _pair(images, mask_folders[0], notes) if mask_folders else {}
    return LabeledObject(
        notes.name(folder) if folder != notes.root else folder.resolve().name,
        tuple(path for good in train for path in _images(good, notes)),
        tuple(
            LabeledImage(path, GOOD if _is_good(label) else label.name, int(not _is_good(label)), masks.get(path, ()))
            for path, label in images.items()
        ),
        tuple(path for good in _good_folders(folder / "validation") for path in _images(good, notes)),
    )


def _pair(images: dict[Path, Path], mask_folder: Path, notes: _Notes) -> dict[Path, tuple[Path, ...]]:
    """Assign masks to images (given with their label's folder) by name; note the others."""
    by_name: dict[tuple[str, str], list[Path]] = defaultdict(list)
    for path, label in images.items():
        stem = path.relative_to(label).with_suffix("").as_posix()
        by_name[label.name, stem].append(path)
        by_name["", stem].append(path)
    labels = {label.name for label in images.values()}
    files: dict[Path, list[Path]] = defaultdict(list)  # whole masks of an image
    parts: dict[Path, list[Path]] = defaultdict(list)  # masks in a folder of its name
    unclear: set[Path] = set()
    for mask in _images(mask_folder, notes):
        place = PurePath(mask.relative_to(mask_folder).with_suffix(""))
        kind = place.parts[0] if place.parts[0] in labels and len(place.parts) > 1 else ""
        name, folder_name = place.relative_to(kind).as_posix(), place.relative_to(kind).parent.as_posix()
        whole = by_name.get((kind, name)) or by_name.get((kind, name.removesuffix("_mask")))
        fitting = whole or by_name.get((kind, folder_name), [])
        if not fitting:
            notes.add(mask, "mask without an image; left out")
        elif len(fitting) > 1:
            notes.add(mask, f"mask fits {' and '.join(map(notes.name, fitting))}; left out, rename one of the images")
            unclear.update(fitting)
        else:
            (files if whole else parts)[fitting[0]].append(mask)
    paired: dict[Path, tuple[Path, ...]] = {}
    for path, label_folder in images.items():
        if len(files[path]) > 1 or (files[path] and parts[path]):
            several = ", ".join(map(notes.name, files[path] + parts[path]))
            notes.add(path, f"has several masks ({several}); none is used, keep one or put all in one folder")
        elif files[path] or parts[path]:
            paired[path] = tuple(files[path] + parts[path])
        elif path not in unclear and not _is_good(label_folder):
            notes.add(path, f"labeled {label_folder.name} but without a mask; its pixels are left out")
    return paired


def _visa_table(root: Path) -> Path | None:
    """Return the path of VisA's table if ``root`` is VisA or one of its objects."""
    if (root / _VISA_TABLE).is_file():
        return root / _VISA_TABLE
    table = root.resolve().parent / _VISA_TABLE
    return table if (root / "Data").is_dir() and table.is_file() else None


def _read_visa(table: Path, root: Path, notes: _Notes) -> list[LabeledObject]:
    """Read the objects in VisA's table, or only ``root``; note what is only in the table or only on disk."""
    only = None if table.parents[1] == root else root.resolve().name
    rows: dict[str, dict[Path, dict[str, str]]] = defaultdict(dict)
    for row in _visa_rows(table):
        image = notes.root / row["image"]
        if only in (None, row["object"]):
            if image in rows[row["object"]]:
                notes.add(image, "listed twice; the first entry is used")
            rows[row["object"]].setdefault(image, row)
    return [_read_visa_object(name, dict(sorted(rows[name].items())), notes) for name in sorted(rows)]


def _visa_rows(table: Path) -> list[dict[str, str]]:
    try:
        with table.open(encoding="utf-8-sig", newline="") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: cannot be read ({error}); replace it with the original") from error
    for number, row in enumerate(rows, start=2):
        if any(row.get(column) is None for column in _VISA_COLUMNS) or row["label"] not in ("normal", "anomaly"):
            raise InputError(
                f"{table} line {number}: needs {','.join(_VISA_COLUMNS)}, label normal or anomaly; correct it"
            )
        for path in (PurePath(row["image"]), PurePath(row["mask"] or row["image"])):
            if path.parts[:1] != (row["object"],) or ".." in path.parts:
                raise InputError(f"{table} line {number}: {path} is not in the folder {row['object']}; correct it")
    return rows


def _read_visa_object(name: str, rows: dict[Path, dict[str, str]], notes: _Notes) -> LabeledObject:
    train: list[Path] = []
    test: list[LabeledImage] = []
    listed = {notes.root / row["mask"] for row in rows.values() if row["mask"]} | set(rows)
    for image, row in rows.items():
        label = int(row["label"] == "anomaly")
        mask = notes.root / row["mask"] if row["mask"] else None
        if not image.is_file():
            notes.add(image, "listed but missing; left out")
        elif row["split"] == "test":
            if mask and not mask.is_file():
                notes.add(mask, f"listed as mask of {notes.name(image)} but missing; its pixels are left out")
                mask = None
            elif label and not mask:
                notes.add(image, "labeled anomaly but without a mask; its pixels are left out")
            test.append(LabeledImage(image, "bad" if label else GOOD, label, (mask,) if mask else ()))
        elif row["split"] == "train" and not label:
            train.append(image)
        else:
            notes.add(image, f"{row['label']} in split {row['split']}; left out")
    for kind in ("Images", "Masks"):
        for path in _images(notes.root / name / "Data" / kind, notes):
            if path not in listed:
                notes.add(path, "not listed in 1cls.csv; left out")
    return LabeledObject(name, tuple(train), tuple(test))


def _is_good(folder: Path) -> bool:
    return folder.name.casefold().removesuffix("_test") in _GOOD_NAMES


def _good_folders(parent: Path) -> list[Path]:
    return [folder for folder in _folders(parent) if _is_good(folder)]


def _folders(parent: Path) -> list[Path]:
    return [child for child in _children(parent) if child.is_dir()]


def _children(parent: Path) -> list[Path]:
    """Return the entries of a folder, sorted, without dotfiles; none if it does not exist."""
    if not parent.is_dir():
        return []
    try:
        return sorted(child for child in parent.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise InputError(f"{parent}: the folder cannot be listed ({error.strerror}); check its permissions") from error


def _images(folder: Path, notes: _Notes) -> list[Path]:
    """Return the images in a folder and its subfolders, sorted within each."""
    images: list[Path] = []
    others: list[Path] = []
    for child in _children(folder):
        if child.is_dir():
            images += _images(child, notes)
        else:
            (images if has_image_extension(child.name) else others).append(child)
    if others:
        notes.add(folder, f"{len(others)} files that are not images, first {others[0].name}; left out")
    return images


def _listing(folder: Path) -> str:
    names = [child.name + "/" * child.is_dir() for child in _children(folder)]
    return ", ".join(names[:8] + ["…"] * (len(names) > 8)) or "nothing"
