"""The output folder of an evaluation: which files it writes there, and which of them are from an earlier one.

metrics.json is written first, with a list of all ``outputs``, and last, with the results and ``finished``. Only the
files that such a record lists are ever replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from aprilcli.errors import InputError, OutputError
from aprilcli.io.atomic import output_errors, remove_leftovers
from aprilcli.io.datasets import LabeledDataset
from aprilcli.io.records import read_own
from aprilcli.options import EvalOptions
from aprilcli.workflows.eval_maps import inside, map_names

RECORD = "metrics.json"
TABLES = ("metrics.csv", "scores.csv")
FOLDERS = ("anomaly_maps", "anomaly_images", "plots")
REPORT = "report.html"
SCAN_RECORD = "run.json"


def planned_outputs(options: EvalOptions, dataset: LabeledDataset) -> list[str]:
    """Return the files to write, relative to the output folder. Raises InputError for names that lead outside."""
    names = [*TABLES, RECORD, *([REPORT] if options.report else [])]
    for item in dataset.objects if options.maps else ():
        names += map_names(item.name, dataset.layout, item.test)
    if options.plots:
        names += [f"plots/{item.name}.png" for item in dataset.objects]
    for name in names:
        inside(options.out, name)
    return names


def check_output(out: Path, overwrite: bool, planned: Sequence[str]) -> list[str]:
    """As ``refuse_outputs``; also delete unfinished files that killed runs left. ``out`` must be locked."""
    owned = refuse_outputs(out, overwrite, planned)
    remove_leftovers(out, below=False)
    for folder in FOLDERS:
        remove_leftovers(out / folder)
    return owned


def refuse_outputs(out: Path, overwrite: bool, planned: Sequence[str]) -> list[str]:
    """Return the files of an earlier evaluation in ``out``. Raises OutputError if files must not be replaced.

    These are: results, without ``overwrite``; and files that no evaluation wrote, in any case.
    """
    with output_errors(out):
        record = _read_record(out / RECORD)
        owned = [name for name in _owned(record) if (out / name).exists()]
        foreign = [name for name in planned if name not in set(owned) and (out / name).exists()]
        # A folder of maps or plots that is not from an evaluation is not mixed with new files.
        made = {name.partition("/")[0] for name in _owned(record)}
        folders = dict.fromkeys(name.partition("/")[0] for name in planned if "/" in name)
        foreign += [name for name in folders if name not in made and any_file(out / name)]
    if foreign:
        named = ", ".join(dict.fromkeys(foreign[:5])) + (" …" if len(foreign) > 5 else "")
        writer = f"a scan ({SCAN_RECORD})" if (out / SCAN_RECORD).exists() else "another program or person"
        raise OutputError(
            f"{out}: {named} would be replaced, but no evaluation wrote it; it is from {writer}: move it, or choose "
            "another --out"
        )
    if owned and not overwrite:
        tops = dict.fromkeys(name.partition("/")[0] for name in owned)
        state = "" if "finished" in record else "an unfinished evaluation: "
        raise OutputError(
            f"{out}: already holds results ({state}{', '.join(tops)}); choose another --out, or replace with "
            "--overwrite"
        )
    return owned


def any_file(folder: Path) -> bool:
    """Return whether a folder contains a file, or is one; unfinished files of killed runs do not count."""
    if not folder.is_dir():
        return folder.exists()
    return any(path.is_file() and not path.name.startswith(".aprilcli-") for path in folder.rglob("*"))


def remove_outputs(out: Path, owned: Iterable[str]) -> None:
    """Delete the given files, and folders that are empty then; metrics.json last. Raises OutputError."""
    for name in sorted(owned, key=lambda name: name == RECORD):
        path = out / name
        with output_errors(path):
            path.unlink(missing_ok=True)
        for parent in PurePosixPath(name).parents:
            if parent != PurePosixPath():
                with suppress(OSError):  # it has other files
                    (out / parent).rmdir()


def _read_record(path: Path) -> dict[str, Any]:
    """Return the record of an evaluation; empty without one."""
    try:
        return read_own(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}


def _owned(record: dict[str, Any]) -> list[str]:
    """Return the files that an evaluation recorded as its own; without a list, those that every evaluation writes."""
    if not record:
        return []
    names = record.get("outputs", [*TABLES, RECORD])
    owned = []
    for name in names if isinstance(names, list) else ():
        with suppress(InputError, TypeError):
            inside(Path(), name)
            owned.append(name)
    return owned
