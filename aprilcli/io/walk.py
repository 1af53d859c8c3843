"""Find the images below folders, in a fixed order and with little memory."""

from __future__ import annotations

import heapq
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from aprilcli.errors import InputError
from aprilcli.io.image_formats import HEAD, format_of, has_image_extension
from aprilcli.io.records import read_own
from aprilcli.text import printable

MAX_NAMES = 50_000  # names of a folder held in memory; a larger folder is listed again for each further batch
# Folders of file managers, network drives and archives: deleted files, thumbnails and other copies.
_SYSTEM_FOLDERS = re.compile(
    r"@eadir|@tmp|@sharebin|@recycle|@recently-snapshot|#recycle|#snapshot|\$recycle\.bin|recycler|\$windows\.~bt"
    r"|system volume information|found\.\d{3}|lost\+found|__macosx|network trash folder|temporary items|trash"
    r"|_?thumb(nail)?s?",
    re.IGNORECASE,
)
# Records that commands of this package write into their output folder, and the folders of images beside each.
_RESULTS = {
    "run.json": ("maps", "zero_shot_maps", "overlays"),
    "metrics.json": ("anomaly_maps", "anomaly_images", "plots"),
}


class LeftOut(StrEnum):
    """Why a folder is not entered."""

    results = "results of this program"
    system = "system folders"
    link = "linked folders"


OnLeftOut = Callable[[str, LeftOut], None]  # called with a folder's relative path


@dataclass(frozen=True)
class FoundImage:
    """A file to read: its path, and its path relative to the folder, with ``/``.

    Bytes that are not UTF-8 are surrogates in ``relative`` (``os.fsdecode``), so that it still names the file.
    ``error`` is the reason why a folder could not be listed; its ``relative`` ends in ``/``.
    """

    path: Path
    relative: str
    error: str | None = None


def find_images(
    paths: Path | Sequence[Path], *, follow: bool = False, on_left_out: OnLeftOut | None = None
) -> Iterator[FoundImage]:
    """Yield every image below the given folders, sorted by the bytes of its path relative to ``base_of(paths)``.

    An image has an image's extension or content; a file that is given itself counts in any case. Names with a leading
    dot are skipped. Links to files count; links to folders are entered only with ``follow``, each target once, and
    never a folder from inside itself. ``on_left_out`` is called for each folder that is not entered because of what it
    is (see ``LeftOut``). The files may still be unreadable; a dangling link is one of them.
    """
    base = base_of(paths)
    entered: set[tuple[int, int]] = set()  # targets of the links followed so far: linked folders may link to each other

    def walk(prefix: str, parents: tuple[tuple[int, int] | None, ...]) -> Iterator[FoundImage]:
        try:
            for name in _names(base / prefix):
                relative = prefix + os.fsdecode(name)
                path = base / relative
                if not relative.endswith("/"):
                    yield FoundImage(path, relative)
                    continue
                if (why := left_out(path, follow=follow)) is not None:
                    if on_left_out is not None:
                        on_left_out(relative, why)
                    continue
                identity = _identity(path)
                if identity is not None:
                    is_link = path.is_symlink()
                    if identity in parents or (is_link and identity in entered):
                        continue
                    if is_link:
                        entered.add(identity)
                yield from walk(relative, (*parents, identity))
        except OSError as error:
            reason = f"the folder cannot be listed ({error.strerror or error}); check that it exists and is readable"
            yield FoundImage(base / prefix, prefix or "./", f"{printable(base / prefix)}: {reason}")

    for relative in _relative_roots(paths, base):
        if relative.endswith("/") or not relative:
            yield from walk(relative, (_identity(base / relative),))
        else:
            yield FoundImage(base / relative, relative)


def base_of(paths: Path | Sequence[Path]) -> Path:
    """Return the folder that relative paths refer to: the only folder given, or else the deepest that holds all."""
    if isinstance(paths, Path):
        paths = (paths,)
    if len(paths) == 1:
        return paths[0].parent if paths[0].is_file() else paths[0]
    folders = [path.parent if path.is_file() else path for path in paths]
    return Path(os.path.commonpath(list(map(os.path.abspath, folders))))


def _relative_roots(paths: Path | Sequence[Path], base: Path) -> list[str]:
    """Return the given paths relative to ``base``, sorted, folders with ``/``, without those inside another."""
    if isinstance(paths, Path) or len(paths) == 1:
        path = paths if isinstance(paths, Path) else paths[0]
        return [path.name if path.is_file() else ""]
    names = set()
    for path in paths:
        name = Path(os.path.relpath(path, base)).as_posix()
        names.add(name if path.is_file() else "" if name == "." else f"{name}/")
    folders = tuple(name for name in names if name.endswith("/") or not name)
    return sorted((n for n in names if not any(n != f and n.startswith(f) for f in folders)), key=os.fsencode)


def left_out(folder: Path, *, follow: bool) -> LeftOut | None:
    """Return why a folder below the scanned folder is not entered; None if it is."""
    if folder.is_symlink():
        if not follow:
            return LeftOut.link
        folder = Path(os.path.realpath(folder))
    if _SYSTEM_FOLDERS.fullmatch(folder.name):
        return LeftOut.system
    is_result = any(folder.name in names and _is_own(folder.parent / record) for record, names in _RESULTS.items())
    return LeftOut.results if is_result else None


def _is_own(record: Path) -> bool:
    """Return whether a JSON file was written by this package."""
    try:
        return bool(read_own(record))
    except OSError:
        return False


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return a folder's device and inode; None if it cannot be accessed, which listing it will report."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def require_paths(paths: Path | Sequence[Path]) -> None:
    """Raise InputError unless every path is an existing folder or file."""
    for path in (paths,) if isinstance(paths, Path) else paths:
        try:
            mode = path.stat().st_mode
        except OSError as error:
            reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
            raise InputError(f"{printable(path)}: {reason}; give a folder of images, or an image") from error
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
            raise InputError(f"{printable(path)}: neither a folder nor a file; give a folder of images, or an image")


def _names(folder: Path) -> Iterator[bytes]:
    """List a folder in order; names of folders end in ``/``, which sorts them like the paths of their contents."""
    last = b""
    while True:
        with os.scandir(os.fsencode(folder)) as entries:
            # Skips most names that were already yielded before the more expensive test; a folder's name ends in "/".
            ahead = (entry for entry in entries if entry.name + b"/" > last)
            names = heapq.nsmallest(MAX_NAMES, (name for entry in ahead if (name := _wanted(entry)) > last))
        yield from names
        if len(names) < MAX_NAMES:
            return
        last = names[-1]


def _wanted(entry: os.DirEntry[bytes]) -> bytes:
    """Return the entry's name, with ``/`` if it is a folder; empty if it is skipped."""
    name = entry.name
    if name.startswith(b"."):
        return b""
    wanted = has_image_extension(name)
    try:
        if entry.is_dir():
            return name + b"/"
        # Pipes and devices are skipped. A dangling link counts, so that its image is reported as missing.
        wanted = is_image(entry.path) if entry.is_file() else wanted and entry.is_symlink()
    except OSError:  # its kind is unknown; reading it will report the reason
        pass
    return name if wanted else b""


def is_image(path: Path | bytes) -> bool:
    """Return whether a file has an image's extension, or content that begins as an image does."""
    if has_image_extension(path if isinstance(path, bytes) else path.name):
        return True
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # bytes from os.scandir
            return format_of(file.read(HEAD)) is not None
    except OSError:
        return False
