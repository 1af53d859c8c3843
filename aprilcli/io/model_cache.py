"""Models converted for another engine, kept in the cache folder: ``NAME.xml`` (layers) and ``NAME.bin`` (weights).

``NAME.json`` is written last and holds the digests of both, so an incomplete or damaged model is not used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from aprilcli.errors import InputError, OutputError
from aprilcli.io import records
from aprilcli.io.atomic import claimed, remove_leftovers, written_aside
from aprilcli.io.cache import cache_folder
from aprilcli.io.files import sha256_of_file

KEPT = 16  # models; the one that was not used for the longest time is deleted first
LAYERS, WEIGHTS, RECORD = ".xml", ".bin", ".json"
_TIMEOUT_S = 1800.0  # a large model is quantized in minutes


def _folder() -> Path:
    return cache_folder() / "openvino"


@contextmanager
def claimed_cache() -> Iterator[None]:
    """Keep other processes from converting models meanwhile, and wait for those that do. Raises OutputError."""
    folder = _folder()
    with claimed(folder / ".lock", f"{folder}: another process is still converting a model", timeout=_TIMEOUT_S):
        remove_leftovers(folder, below=False)
        yield


def find_model(name: str) -> Path | None:
    """Return the ``.xml`` of a kept model, with its ``.bin`` beside it; None if it is missing or damaged."""
    try:
        layers, record = _folder() / f"{name}{LAYERS}", _folder() / f"{name}{RECORD}"
        digests = json.loads(record.read_text(encoding="ascii"))
        is_whole = all(sha256_of_file(layers.with_suffix(suffix)) == digests[suffix] for suffix in (LAYERS, WEIGHTS))
    except (OSError, ValueError, LookupError, TypeError, RecursionError, InputError, OutputError):
        return None
    with suppress(OSError):
        os.utime(record)  # used now, see KEPT
    return layers if is_whole else None


def keep_model(name: str, write: Callable[[Path, Path], None]) -> None:
    """Keep what ``write`` writes to the two paths that it gets; delete the oldest models. Needs ``claimed_cache``.

    Raises OutputError.
    """
    layers = _folder() / f"{name}{LAYERS}"
    with written_aside(layers) as new_layers, written_aside(layers.with_suffix(WEIGHTS)) as new_weights:
        write(new_layers, new_weights)
        digests = {LAYERS: sha256_of_file(new_layers), WEIGHTS: sha256_of_file(new_weights)}
    records.write_json(layers.with_suffix(RECORD), digests)
    by_use = sorted(_folder().glob(f"*{RECORD}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for record in by_use[KEPT:]:
        for path in (record, record.with_suffix(LAYERS), record.with_suffix(WEIGHTS)):
            with suppress(OSError):  # on Windows, another process may have opened it
                path.unlink()
