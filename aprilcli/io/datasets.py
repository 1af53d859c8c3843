"""Labeled folders: which images are good, which show which defect, and which masks belong to them.

========  ==========================================================================================================
mvtec     ``<object>/train/good``, ``test/{good,<defect>}``, ``ground_truth/<defect>/<stem>_mask.png``: MVTec AD, MPDD;
          masks may lack ``_mask``, as in the MVTec-like conversion of VisA
loco      the same with ``validation/good`` and a folder of masks per image: MVTec LOCO
btad      ``<object>/train/ok``, ``test/{ok,ko}``, ``ground_truth/ko/<stem>.png`` (or .bmp): BTAD
ad2       ``<object>/train/good``, ``validation/good``, ``test_public/{good,bad,ground_truth/bad/<stem>_mask.png}``:
          MVTec AD 2; its private test images are not read
visa      ``<object>/Data/...`` and ``split_csv/1cls.csv``: VisA as published
folder    ``<object>/<label>/...``, also below ``test`` (without it, ``val`` or ``images``). Good labels have names such
          as good, normal, ok, good_2 or no_defect (see ``label_names.judge``). Masks lie beside their images
          (``0_mask``, ``0_GT``, or ``0.png`` beside ``0.jpg``), or in a folder ``ground_truth``, ``masks``, ``gt`` … of
          the object, with or without a folder per label, or of a label; a folder ``label`` or ``msk`` if its files look
          like masks. Good training images are those in ``train/<good>`` and ``<good>_train``, or those in ``<good>`` if
          there is a ``<good>_test`` next to it
========  ==========================================================================================================

The root is one object, a set of objects, or a set of such sets. Names of splits, labels and masks count in any case
and Unicode form. Masks are assigned to images by name, never by order: ``<stem>``, ``<stem>_mask``, or all files in a
folder ``<stem>``, which are combined. Beside images, files with a word for masks in their name are never images, nor
are those that extend another's name (``0_bin``) and look like its mask. Of the images that a mask fits, the only
anomalous one has it. Results of this program and system folders are left out. Links to folders are entered where
splits, labels and objects are expected, unless their target is read already; below, only with ``follow``.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from aprilcli.defaults import LAYOUTS
from aprilcli.errors import InputError, OptionError
from aprilcli.io.label_names import (
    IMAGE_FOLDERS,
    TEST,
    TRAIN,
    VALIDATION,
    Label,
    fold,
    judge,
    mask_rank,
    masked_names,
    may_be_masks,
    same_form,
    split_in,
    split_of,
)
from aprilcli.io.pairing import Candidate, Content, is_mask_folder, pair, sort_content
from aprilcli.io.walk import LeftOut, find_images, is_image, left_out

GOOD = "good"  # the ``defect`` of normal images

_PLAIN_GOOD = frozenset({"good", "normal", "ok"})
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
        return same_form(self.name.rpartition("/")[2])


@dataclass(frozen=True)
class LabeledDataset:
    """What was recognized below ``root``.

    ``problems``: a line for each image or mask that is missing or not used. ``other_files``: a line on all files that
    are not images, or none. ``notes``: what was decided by names. ``left_out``: folders that were not entered, relative
    to the root.
    """

    layout: str
    root: Path
    objects: tuple[LabeledObject, ...]
    problems: tuple[str, ...]
    other_files: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[tuple[str, LeftOut], ...] = ()


def read_dataset(root: Path, layout: str = "auto", *, follow: bool = False) -> LabeledDataset:
    """Find the objects, images and masks of a labeled folder; images are opened only to tell masks by content.

    ``layout``: one of ``LAYOUTS``, or ``auto`` to recognize it. Dotfiles are skipped. ``follow``: enter linked folders
    inside label folders. Raises OptionError for an unknown layout; InputError if the folder does not exist, does not
    fit the layout, has objects of different layouts, or label folders that may be good or not.
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
        tree = _Tree(table.parents[1], follow)
        return tree.dataset("visa", _read_visa(table, root, tree), root)
    tree = _Tree(root, follow)
    found, others = _find_objects(tree, layout)
    layouts = sorted(set(found.values()))
    if not layouts:
        raise InputError(f"{root}: no labeled folder ({layout}); looked for {_LOOKED_FOR}; found {_listing(root)}")
    if "folder" in layouts and set(layouts) <= {"folder", "mvtec", "btad", "loco"}:
        layouts = ["folder"]  # which reads the others in the same way
    if len(layouts) > 1:
        examples = ", ".join(f"{next(f for f in found if found[f] == name)} is {name}" for name in layouts)
        raise InputError(f"{root}: objects of different layouts ({examples}); choose one layout, or give one object")
    for folder in others:
        tree.add(folder, f"not an object of layout {layouts[0]}; left out")
    return tree.dataset(layouts[0], [_read_object(folder, layouts[0], tree) for folder in found], root)


class _Tree:
    """Lists the folders and images of a data set, and collects what is not used, with paths relative to the root."""

    def __init__(self, root: Path, follow: bool) -> None:
        self.root = root
        self.notes: list[str] = []
        self.unclear: list[str] = []
        self._follow = follow
        self._problems: list[str] = []
        self._left_out: dict[str, LeftOut] = {}
        self._folders: dict[Path, list[Path]] = {}
        self._not_images: list[Path] = []
        self._has_masks: dict[Path, bool] = {}

    def add(self, path: Path, message: str) -> None:
        """Add a problem."""
        self._problems.append(f"{self.name(path)}: {message}")

    def name(self, path: Path) -> str:
        """Return a path relative to the root, with ``/``."""
        return path.relative_to(self.root).as_posix()

    def dataset(self, layout: str, objects: list[LabeledObject], root: Path) -> LabeledDataset:
        """Return the data set with all that was collected. Raises InputError if labels are unclear."""
        if self.unclear:
            raise InputError(
                f"{root}: it is not clear whether these folders contain good images or a defect: "
                f"{', '.join(self.unclear)}; rename each to good, or to the name of its defect"
            )
        return LabeledDataset(
            layout=layout,
            root=root,
            objects=tuple(objects),
            problems=tuple(dict.fromkeys(self._problems)),
            other_files=tuple(self._describe_other_files()),
            notes=tuple(self.notes),
            left_out=tuple(self._left_out.items()),
        )

    def _describe_other_files(self) -> Iterator[str]:
        if self._not_images:
            count = len(self._not_images)
            files = "1 file that is not an image" if count == 1 else f"{count} files that are not images"
            yield f"{files}, first {self.name(self._not_images[0])}; left out"

    def folders(self, parent: Path) -> list[Path]:
        """Return the folders in a folder, sorted, without dotfiles, results of this program and system folders.

        A link is left out if its target contains or is contained in the folder itself or another one beside it.
        """
        if parent not in self._folders:
            self._folders[parent] = list(self._list_folders(parent))
        return self._folders[parent]

    def _list_folders(self, parent: Path) -> Iterator[Path]:
        folders = [child for child in _children(parent) if child.is_dir()]
        entered = [os.path.realpath(parent)] if any(folder.is_symlink() for folder in folders) else []
        targets = {folder: os.path.realpath(folder) for folder in folders if not folder.is_symlink()}
        for folder in folders:
            if (reason := left_out(folder, follow=True)) is not None or self._has_only_results(folder):
                self._left_out[f"{self.name(folder)}/"] = reason or LeftOut.results
            elif folder.is_symlink():
                target = os.path.realpath(folder)
                other = next((f for f, known in targets.items() if _overlap(target, known)), None)
                if other is not None or any(_is_in(folder, target) for folder in entered):
                    self.add(folder, f"links to {target}, which is read already; left out")
                    continue
                targets[folder] = target
                yield folder
            else:
                yield folder

    def _has_only_results(self, folder: Path) -> bool:
        """Return whether a folder is an output folder of this program."""
        if not any((folder / record).is_file() for record in ("run.json", "metrics.json")):
            return False
        children = [child for child in _children(folder) if child.is_dir()]
        reasons = [left_out(child, follow=True) for child in children]
        is_output = bool(reasons) and all(reason is not None for reason in reasons) and LeftOut.results in reasons
        return is_output and not any(is_image(child) for child in _children(folder) if child.is_file())

    def images(self, folder: Path) -> list[Path]:
        """Return the images in a folder and its subfolders, sorted."""
        found: list[Path] = []
        prefix = f"{self.name(folder)}/"

        def on_left_out(relative: str, reason: LeftOut) -> None:
            self._left_out[prefix + relative] = reason

        for image in find_images(folder, follow=self._follow, on_left_out=on_left_out):
            if image.error is not None:
                raise InputError(image.error)
            if self._follow and (link := self._link_into_root(image.path, folder)) is not None:
                self.add(link, "links into the data set; left out")
                continue
            found.append(image.path)
        known = set(found)
        for parent in dict.fromkeys((folder, *(path.parent for path in found))):
            self._not_images += [p for p in _children(parent) if p not in known and p.is_file() and not is_image(p)]
        return found

    def _link_into_root(self, path: Path, folder: Path) -> Path | None:
        """Return the linked folder between a label folder and an image if its target is in the data set."""
        for parent in path.parents:
            if parent == folder:
                return None
            if parent.is_symlink() and _overlap(os.path.realpath(parent), os.path.realpath(self.root)):
                return parent
        return None

    def stray_images(self, folder: Path) -> list[Path]:
        """Return the images directly in a folder."""
        return [path for path in _children(folder) if path.is_file() and is_image(path)]

    def has_masks(self, folder: Path) -> bool:
        """Return whether a folder is one of masks: by its name, and for some by content or labels that it repeats."""
        if folder not in self._has_masks:
            self._has_masks[folder] = is_mask_folder(folder.name, _images_below(folder)) or (
                may_be_masks(folder.name) and self._repeats_labels(folder)
            )
        return self._has_masks[folder]

    def _repeats_labels(self, folder: Path) -> bool:
        inside, beside = ({fold(child.name) for child in self.folders(parent)} for parent in (folder, folder.parent))
        return not inside.isdisjoint(beside)

    def splits(self, folder: Path, split: str) -> list[Path]:
        """Return the folders of a split; without a test split, ``images`` and the like are its folder.

        Where a split has no label but ``images`` or the like with folders, this is its folder.
        """
        found = [child for child in self.folders(folder) if split_of(child.name) == split]
        if split == TEST and not found:
            return self._image_folders(folder)
        return [part for child in found for part in self._split_parts(child)]

    def _split_parts(self, folder: Path) -> list[Path]:
        images = [child for child in self._image_folders(folder) if self.folders(child)]
        return images if images and not self.labels([folder]) else [folder]

    def _image_folders(self, folder: Path) -> list[Path]:
        return [child for child in self.folders(folder) if fold(child.name) in IMAGE_FOLDERS]

    def labels(self, parents: list[Path]) -> list[Path]:
        """Return the folders of labels: neither splits nor folders of masks."""
        return [
            child
            for parent in parents
            for child in self.folders(parent)
            if split_of(child.name) is None and not self.has_masks(child) and child not in self.splits(parent, TEST)
        ]

    def good_labels(self, parents: list[Path]) -> list[Path]:
        """Return the folders of good images."""
        return [label for label in self.labels(parents) if judge(label.name) == Label.good]


def _images_below(folder: Path) -> Iterator[Path]:
    files = (Path(parent, name) for parent, _, names in os.walk(folder) for name in sorted(names))
    return (path for path in files if not path.name.startswith(".") and is_image(path))


def _is_in(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _overlap(first: str, second: str) -> bool:
    return _is_in(first, second) or _is_in(second, first)


def _find_objects(tree: _Tree, layout: str) -> tuple[dict[Path, str], list[Path]]:
    """Return the objects at the first depth that has any, each with its layout, and the other folders there."""
    level = [tree.root]
    for _ in range(3):
        found = {folder: name for folder in level if (name := _layout_of(tree, folder, layout))}
        if found:
            _refuse_splits_above(tree, found)
            return found, [folder for folder in level if folder not in found]
        level = _distinct(tree, [child for folder in level for child in tree.folders(folder)])
    return {}, []


def _refuse_splits_above(tree: _Tree, objects: Iterable[Path]) -> None:
    """Raise InputError if the objects lie in splits."""
    for folder in objects:
        parent = folder.parent
        if folder != tree.root != parent and split_of(parent.name) == TEST:
            for train in tree.folders(parent.parent):
                if split_of(train.name) == TRAIN:
                    raise InputError(
                        f"{tree.root}: {train.name} and {parent.name} contain objects such as {folder.name}; move the "
                        f"splits into each object: {folder.name}/{train.name}, {folder.name}/{parent.name}"
                    )


def _distinct(tree: _Tree, folders: list[Path]) -> list[Path]:
    """Return the folders without links whose target is, contains or is in another of them; report these."""
    if not any(folder.is_symlink() for folder in folders):
        return folders
    targets: dict[Path, str] = {}
    for folder in sorted(folders, key=lambda folder: folder.is_symlink()):
        target = os.path.realpath(folder)
        if folder.is_symlink() and any(_overlap(target, known) for known in targets.values()):
            tree.add(folder, f"links to {target}, which is read already; left out")
        else:
            targets[folder] = target
    return [folder for folder in folders if folder in targets]


def _layout_of(tree: _Tree, folder: Path, layout: str) -> str | None:
    """Return the layout that ``folder`` fits as an object: the given one, or with ``auto`` the first.

    Public data sets are recognized by their exact names, and otherwise read as ``folder``, which accepts more names.
    """

    def has(split: str, good: str) -> bool:
        if layout == "auto":
            return (folder / split / good).is_dir()
        return any(fold(label.name) == good for label in tree.labels(tree.splits(folder, split)))

    has_test = (folder / "test").is_dir() if layout == "auto" else bool(tree.splits(folder, TEST))
    is_mvtec = has_test and (has(TRAIN, "good") or has(TEST, "good"))
    is_btad = has_test and (has(TRAIN, "ok") or has(TEST, "ok"))
    is_loco = (folder / "validation" / "good").is_dir() or any(
        tree.folders(kind) for kind in tree.folders(folder / "ground_truth")
    )
    if not tree.splits(folder, TRAIN) and any(_is_object(tree, label) for label in tree.labels([folder])):
        return None  # a set; an object may be called test, good or mask
    tested = [folder, *tree.splits(folder, TEST), *_validation_as_test(tree, folder)]
    fits = {
        "ad2": (folder / "test_public").is_dir(),
        "btad": is_btad,
        "loco": is_mvtec and (is_loco or layout == "loco"),
        "mvtec": is_mvtec,
        "folder": bool(tree.good_labels(tested)),
    }
    return next((name for name, does in fits.items() if does and layout in ("auto", name)), None)


def _is_object(tree: _Tree, folder: Path) -> bool:
    """Return whether a folder that may be a label is an object: good images beside others, or in splits."""
    splits = [child for split in (TRAIN, TEST, VALIDATION) for child in tree.splits(folder, split)]
    labels = tree.labels([folder])
    has_splits = bool(tree.good_labels(splits)) and bool(tree.splits(folder, TEST))
    return has_splits or (len(labels) > 1 and any(fold(label.name) in _PLAIN_GOOD for label in labels))


def _validation_as_test(tree: _Tree, folder: Path) -> list[Path]:
    """Return the validation split if it contains defects and there is no test split."""
    if tree.splits(folder, TEST) or not tree.splits(folder, TRAIN):
        return []
    validation = tree.splits(folder, VALIDATION)
    labels = tree.labels(validation)
    return validation if any(judge(label.name) == Label.defect for label in labels) else []


def _read_object(folder: Path, layout: str, tree: _Tree) -> LabeledObject:
    tests, validation = tree.splits(folder, TEST), tree.splits(folder, VALIDATION)
    if layout == "ad2":
        tests = [folder / "test_public"]
    elif layout == "folder":
        if as_test := _validation_as_test(tree, folder):
            tests, validation = as_test, []
            tree.notes.append(f"{tree.name(folder)}: no test split; the images of {as_test[0].name} are tested")
        elif not tree.good_labels(tests):
            tests = [folder, *tests]
    parents = list(dict.fromkeys((folder, *tests, *(test.parent for test in tests if folder not in tests))))
    mask_folders = sorted(
        (f for parent in parents for f in tree.folders(parent) if tree.has_masks(f)),
        key=lambda f: (parents.index(f.parent), mask_rank(f.name)),
    )
    for other in mask_folders[1:]:
        tree.add(other, f"masks are read from {tree.name(mask_folders[0])} instead; left out")
    trains = tree.splits(folder, TRAIN)
    train, further, labels = tree.good_labels(trains), tree.good_labels(validation), tree.labels(tests)
    label_masks = {label: base for label in labels if (base := _base_label(label, labels)) is not None}
    labels = [label for label in labels if label not in label_masks]
    if folder in tests:
        split_good = [label for label in labels if judge(label.name) == Label.good]
        by_split = {label: split_in(label.name) for label in split_good}
        is_split = TEST in by_split.values()
        train += [label for label, split in by_split.items() if split == TRAIN or (is_split and split is None)]
        further += [label for label, split in by_split.items() if split == VALIDATION]
    labels = [label for label in labels if label not in (*train, *further)]
    distinct = _distinct(tree, [*train, *further, *labels])
    train, further, labels = ([f for f in group if f in distinct] for group in (train, further, labels))
    for parents, used, kind in ((trains, train, "training"), (validation, further, "validation")):
        for other in tree.labels(parents):
            if other not in used and judge(other.name) != Label.good:
                tree.add(other, f"{kind} images that are not good; left out")
    for parent in dict.fromkeys((folder, *trains, *tests)):
        for stray in tree.stray_images(parent):
            tree.add(stray, "an image outside the label folders; left out")
    _report_unused(folder, [*trains, *validation, *tests], mask_folders, layout, tree)
    _note_good_names(folder, [*train, *further, *labels], tree)
    good_train = [image.path for good in train for image in _read_label(good, tree).images]
    good_further = [image.path for good in further for image in _read_label(good, tree).images]
    return LabeledObject(
        tree.name(folder) if folder != tree.root else folder.resolve().name,
        tuple(good_train),
        tuple(_read_test(labels, mask_folders[:1], label_masks, tree)),
        tuple(good_further),
    )


def _base_label(label: Path, labels: list[Path]) -> str | None:
    """Return the label whose masks a folder contains by its name: ``crack_mask`` beside ``crack``."""
    names = {fold(other.name): same_form(other.name) for other in labels}
    return next((names[fold(name)] for name in masked_names(label.name) if fold(name) in names), None)


def _note_good_names(folder: Path, labels: list[Path], tree: _Tree) -> None:
    """Tell which folders were recognized as good by more than a plain name."""
    names = [label.name for label in labels if judge(label.name) == Label.good and fold(label.name) not in _PLAIN_GOOD]
    if names:
        tree.notes.append(f"{folder.resolve().name}: read as good images: {', '.join(dict.fromkeys(names))}")


def _report_unused(folder: Path, splits: list[Path], mask_folders: list[Path], layout: str, tree: _Tree) -> None:
    """Report folders with images, directly in an object or its splits, that are not read."""
    parents = dict.fromkeys((folder, *splits, *(split.parent for split in splits if split != folder)))
    known = {*parents, *mask_folders, *tree.labels(splits)}
    for child in (child for parent in parents for child in tree.folders(parent) if child not in known):
        is_private = layout == "ad2" and child.name.startswith("test_private")
        if not is_private and any(_images_below(child)):
            tree.add(child, "no split, label or masks; its images are left out")


def _read_label(label: Path, tree: _Tree) -> Content:
    """Read a label folder; report channels that are left out and images of one name."""
    content = sort_content(label, same_form(label.name), tree.images(label))
    for channel in content.left_out:
        tree.add(channel, "a channel beside the images; left out")
    for path in content.orphans:
        tree.add(path, "mask without an image; left out")
    for path in content.unclear:
        tree.add(path, "another image beside it has the same name and neither is clearly a mask; both are used")
    return content


def _read_test(
    labels: list[Path], mask_folders: list[Path], label_masks: dict[Path, str], tree: _Tree
) -> Iterator[LabeledImage]:
    """Read the test images of an object and assign their masks."""
    names = {same_form(label.name) for label in labels}
    masks = [mask for folder in mask_folders for mask in _masks(folder, names, tree)]
    for folder, base in label_masks.items():
        masks += [Candidate(mask.path, base, mask.name) for mask in _masks(folder, set(), tree)]
    contents: list[tuple[Path, Content]] = []
    for label in labels:
        if judge(label.name) == Label.unclear:
            if tree.images(label):
                tree.unclear.append(tree.name(label))
            continue
        contents.append((label, _read_label(label, tree)))
    images = [image for _, content in contents for image in content.images]
    masks += [mask for _, content in contents for mask in content.masks]
    beside = {path: found for _, content in contents for path, found in content.beside.items()}
    has_any = bool(mask_folders or masks or beside)
    anomalous = {i.path for label, content in contents if judge(label.name) != Label.good for i in content.images}
    decided: list[Path] = []
    paired = pair(images, anomalous if has_any else set(), masks, beside, tree.add, tree.name, decided)
    if decided:
        tree.notes.append(
            f"masks that fit a good and an anomalous image are read as those of the anomalous image: {len(decided)}, "
            f"first {tree.name(decided[0])}"
        )
    found = {path: masks for path, masks in paired.items() if set(masks) & set(beside.get(path, ()))}
    if found:
        path, (mask, *_) = next(iter(found.items()))
        count = sum(map(len, found.values()))
        tree.notes.append(f"masks beside their images: {count}, first {tree.name(mask)} of {tree.name(path)}")
    for image in images:
        is_good = image.path not in anomalous
        yield LabeledImage(image.path, GOOD if is_good else image.label, int(not is_good), paired.get(image.path, ()))


def _masks(folder: Path, labels: set[str], tree: _Tree) -> Iterator[Candidate]:
    """Return the files in a folder of masks, each with its label if the path names one."""
    by_fold = {fold(label): label for label in sorted(labels)}
    paths = tree.stray_images(folder) + [path for sub in tree.folders(folder) for path in tree.images(sub)]
    for path in paths:
        place = PurePath(same_form(path.relative_to(folder).as_posix())).with_suffix("")
        parts = place.parts
        if len(parts) > 2 and split_of(parts[0]) is not None and parts[0] not in labels:
            parts = parts[1:]  # the split is repeated below the folder of masks
        label = ""
        if len(parts) > 1:
            label = parts[0] if parts[0] in labels else by_fold.get(fold(parts[0]), "")
        yield Candidate(path, label, PurePath(*parts[bool(label) :]).as_posix())


def _visa_table(root: Path) -> Path | None:
    """Return the path of VisA's table if ``root`` is VisA or one of its objects."""
    if (root / _VISA_TABLE).is_file():
        return root / _VISA_TABLE
    table = root.resolve().parent / _VISA_TABLE
    return table if (root / "Data").is_dir() and table.is_file() else None


def _read_visa(table: Path, root: Path, tree: _Tree) -> list[LabeledObject]:
    """Read the objects in VisA's table, or only ``root``; note what is only in the table or only on disk."""
    only = None if table.parents[1] == root else root.resolve().name
    rows: dict[str, dict[Path, dict[str, str]]] = defaultdict(dict)
    for row in _visa_rows(table):
        image = tree.root / row["image"]
        if only in (None, row["object"]):
            if image in rows[row["object"]]:
                tree.add(image, "listed twice; the first entry is used")
            rows[row["object"]].setdefault(image, row)
    return [_read_visa_object(name, dict(sorted(rows[name].items())), tree) for name in sorted(rows)]


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


def _read_visa_object(name: str, rows: dict[Path, dict[str, str]], tree: _Tree) -> LabeledObject:
    train: list[Path] = []
    test: list[LabeledImage] = []
    listed = {tree.root / row["mask"] for row in rows.values() if row["mask"]} | set(rows)
    for image, row in rows.items():
        label = int(row["label"] == "anomaly")
        mask = tree.root / row["mask"] if row["mask"] else None
        if not image.is_file():
            tree.add(image, "listed but missing; left out")
        elif row["split"] == "test":
            if mask and not mask.is_file():
                tree.add(mask, f"listed as mask of {tree.name(image)} but missing; its pixels are left out")
                mask = None
            elif label and not mask:
                tree.add(image, "labeled anomaly but without a mask; its pixels are left out")
            test.append(LabeledImage(image, "bad" if label else GOOD, label, (mask,) if mask else ()))
        elif row["split"] == "train" and not label:
            train.append(image)
        else:
            tree.add(image, f"{row['label']} in split {row['split']}; left out")
    for kind in ("Images", "Masks"):
        for path in tree.images(tree.root / name / "Data" / kind):
            if path not in listed:
                tree.add(path, "not listed in 1cls.csv; left out")
    return LabeledObject(name, tuple(train), tuple(test))


def _children(parent: Path) -> list[Path]:
    """Return the entries of a folder, sorted, without dotfiles; none if it does not exist."""
    if not parent.is_dir():
        return []
    try:
        return sorted(child for child in parent.iterdir() if not child.name.startswith("."))
    except OSError as error:
        raise InputError(f"{parent}: the folder cannot be listed ({error.strerror}); check its permissions") from error


def _listing(folder: Path) -> str:
    names = [child.name + "/" * child.is_dir() for child in _children(folder)]
    return ", ".join(names[:8] + ["…"] * (len(names) > 8)) or "nothing"
