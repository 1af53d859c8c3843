"""Standard output and error that neither a narrow encoding nor a full disk nor a closed pipe can break."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


class Output(io.RawIOBase):
    """A stream whose failures are remembered, not raised: after the first, what is written is dropped."""

    def __init__(self, raw: Any) -> None:
        """Write to ``raw``, a binary stream without a buffer."""
        self._raw = raw
        self.failure: OSError | None = None

    def write(self, data: Any) -> int:
        """Write bytes; return how many were written or dropped."""
        if self.failure is None:
            try:
                return int(self._raw.write(data))
            except OSError as error:
                self.failure = error
        return len(data)

    def writable(self) -> bool:
        """Return True."""
        return True

    def isatty(self) -> bool:
        """Return whether this is a terminal."""
        return bool(self._raw.isatty())

    def fileno(self) -> int:
        """Return the file descriptor."""
        return int(self._raw.fileno())


def make_tolerant() -> Output:
    """Replace ``sys.stdout`` and ``sys.stderr`` by streams that never raise; return the one that is standard output.

    A character that the encoding lacks is escaped as ``\\xNN`` or ``\\uNNNN``. A closed stream fails at the first
    write; its descriptor is occupied, so that no file of results takes its place.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_RDONLY)
    outputs = []
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            raw: Any = io.FileIO(os.open(os.devnull, os.O_RDONLY), "w")
        else:
            raw = getattr(stream.buffer, "raw", stream.buffer)  # with `python -u` there is no buffer
        output = Output(raw)
        wrapper = io.TextIOWrapper(
            io.BufferedWriter(output),
            encoding="utf-8" if stream is None else stream.encoding,
            errors="backslashreplace",
            line_buffering=True,
        )
        setattr(sys, name, wrapper)
        outputs.append(output)
    return outputs[0]
