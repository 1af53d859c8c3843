"""Text files that grow line by line and stay whole when the disk is full."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from aprilcli.io.atomic import output_errors


class LineFile:
    """A text file open for appending, unbuffered."""

    def __init__(self, path: Path, stream: FileIO) -> None:
        """Use ``open_lines``; ``path`` is for messages."""
        self._path = path
        self._stream = stream

    def write(self, text: str) -> None:
        """Append all of a text or nothing. Raises OutputError, for example if the disk is full."""
        end = self._stream.tell()
        content = text.encode("utf-8", "surrogateescape")
        with output_errors(self._path):
            try:
                written = 0
                while written < len(content):
                    written += self._stream.write(content[written:])
            except OSError:
                self._stream.truncate(end)
                raise


@contextmanager
def open_lines(path: Path, keep: int = 0) -> Iterator[LineFile]:
    """Open a text file for appending after its first ``keep`` bytes; the rest is cut off."""
    with output_errors(path):
        path.touch()
        stream = path.open("rb+", buffering=0)
        stream.truncate(keep)
        stream.seek(keep)
    with stream:
        yield LineFile(path, stream)
