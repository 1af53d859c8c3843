"""Files that grow line by line: a line that does not fit on disk is not left incomplete."""

from __future__ import annotations

import resource
import signal
from pathlib import Path

import pytest

from aprilcli.errors import OutputError
from aprilcli.io.append_file import open_lines


def test_a_row_that_does_not_fit_on_disk_is_not_left_incomplete(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    path = tmp_path / "lines"
    try:
        with open_lines(path) as lines:
            lines.write("whole\n")
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
            with pytest.raises(OutputError, match="File too large"):
                lines.write("too long a line\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_text() == "whole\n"
