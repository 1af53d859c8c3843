"""What `enroll` refuses before the model is loaded. Imports no torch, so a refusal takes no seconds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from aprilcli.core.bank_path import new_bank_path
from aprilcli.errors import InputError, OptionError, OutputError
from aprilcli.io.atomic import check_writable, output_errors
from aprilcli.io.datasets import GOOD
from aprilcli.io.labels_csv import find_labeled, read_labels
from aprilcli.io.walk import FoundImage, find_images, require_paths
from aprilcli.options import EnrollOptions, Method
from aprilcli.text import listed
from aprilcli.workflows.console import Console
from aprilcli.workflows.parts import find_bank
from aprilcli.workflows.pipeline import NO_IMAGES, LeftOutFolders

LISTED = 10  # files that an error names; the others are counted


@dataclass(frozen=True)
class FoundImages:
    """The images that were found: references, those to calibrate on, and known defects."""

    references: list[FoundImage]
    calibration: list[FoundImage]
    defects: list[FoundImage]


def check(options: EnrollOptions, console: Console) -> FoundImages:
    """Check options, folders and bank, and find the images; name the folders that are left out.

    Raises OptionError, InputError for missing folders, a missing bank or no images, OutputError for a bank that exists
    or cannot be written.
    """
    path, paths = new_bank_path(options.part, options.banks), options.paths or []
    _check_options(options)
    calibration = [] if options.calibrate is None else [options.calibrate]
    require_paths([*paths, *calibration, *([] if options.defects is None else [options.defects])])
    check_writable(options.banks)
    refuse_enrolled(options, path)
    if options.append or not paths:
        find_bank(options.part, options.banks)
    references = _find(paths, options, console)
    if options.labels is not None:
        references = _labeled_good(references, options.labels)
    defects = [] if options.defects is None else [options.defects]
    found = FoundImages(references, _find(calibration, options, console), _find(defects, options, console))
    refuse_unreadable(image.error for image in (*found.references, *found.calibration, *found.defects))
    return found


def _check_options(options: EnrollOptions) -> None:
    if options.coreset is not None and not 0 < options.coreset <= 1:
        raise OptionError(f"--coreset {options.coreset:g}: give a share of the rows, above 0 and up to 1")
    if not options.paths and options.calibrate is None:
        raise OptionError("give a folder of good images, or --calibrate with a folder to calibrate an enrolled part")
    if not options.paths and options.coreset is not None:
        raise OptionError("--coreset: it keeps a share of references; give the folder of all of them")
    if options.method not in (None, Method.april_gan):
        april_gan_only = {
            "--coreset": options.coreset is not None,
            "--fusion": options.fusion is not None,
            "--defects": options.defects is not None,
        }
        if given := [name for name, is_given in april_gan_only.items() if is_given]:
            raise OptionError(f"{' and '.join(given)}: not with --method {options.method}, which has its own; omit it")
    if options.defects is not None and (options.append or not options.paths or options.calibrate is None):
        raise OptionError(
            "--defects: they choose the score when a part is enrolled with --calibrate; give the folder of all "
            "references and --calibrate with further good images, without --append"
        )
    if not options.paths and options.method is not None:
        raise OptionError("--method: it says how references are used; give the folder of the references")
    if not options.paths and options.labels is not None:
        raise OptionError("--labels: give the folder of the labeled images, too")


def refuse_enrolled(options: EnrollOptions, path: Path) -> None:
    """Raise OutputError if the bank exists, unless it is to be extended, calibrated or replaced."""
    with output_errors(path):
        if options.paths and path.exists() and not (options.append or options.overwrite):
            raise OutputError(
                f"{path.absolute()}: this part is already enrolled; add references with --append, or use --overwrite"
            )


def _find(paths: Sequence[Path], options: EnrollOptions, console: Console) -> list[FoundImage]:
    if not paths:
        return []
    left_out = LeftOutFolders()
    images = list(find_images(paths, follow=options.follow, on_left_out=left_out))
    for note in left_out.notes():
        console.note(note)
    if not images:
        raise InputError(f"{listed(paths, LISTED)}: {NO_IMAGES}")
    return images


def _labeled_good(images: Sequence[FoundImage], table: Path) -> list[FoundImage]:
    good = [image for image, label in find_labeled(images, read_labels(table), table).items() if label == GOOD]
    if not good:
        raise InputError(f"{table}: no image is labeled {GOOD}; only good images are enrolled")
    return good


def refuse_unreadable(errors: Iterable[str | None]) -> None:
    """Raise InputError with the list of the errors, if there are any."""
    if present := [error for error in errors if error is not None]:
        more = f"; and {len(present) - LISTED} more" if len(present) > LISTED else ""
        errors_listed = "; ".join(present[:LISTED])
        raise InputError(
            f"nothing was written; remove the images that cannot be read ({len(present)} in all): {errors_listed}{more}"
        )
