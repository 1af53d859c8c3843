"""What `train` and `eval` tell about a labeled folder: folders left out, decisions by name, and how masks were read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from aprilcli.io.data_fingerprint import relative_path
from aprilcli.io.datasets import LabeledDataset
from aprilcli.workflows.console import Console
from aprilcli.workflows.pipeline import LeftOutFolders


def print_dataset_notes(dataset: LabeledDataset, console: Console) -> None:
    """Print what was decided by names, and which folders were left out."""
    folders = LeftOutFolders()
    for name, reason in dataset.left_out:
        folders(name, reason)
    for note in (*dataset.notes, *folders.notes()):
        console.note_once(note)


class MaskNotes:
    """Counts the notes on how masks were read, per object."""

    def __init__(self) -> None:
        """Start without any."""
        self._paths: dict[tuple[str, str], list[Path]] = defaultdict(list)

    def add(self, object_name: str, mask: Path, note: str) -> None:
        """Add a note on the mask of an image of the object."""
        self._paths[object_name, note].append(mask)

    def problems(self, root: Path) -> Iterator[str]:
        """Yield a line per object and note, with the number of masks and the first of them."""
        for (object_name, note), paths in self._paths.items():
            count = "1 mask" if len(paths) == 1 else f"{len(paths)} masks"
            yield f"{object_name}: {count}, first {relative_path(paths[0], root)}, {note}"
