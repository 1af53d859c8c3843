"""What a terminal shows of notes and progress, and the time of notes."""

from __future__ import annotations

import os
import pty
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from helpers import draw_images, run_scan

from aprilcli.workflows.console import Console

TIMED = re.compile(r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d .*\S")


def screen_of(output: str) -> list[str]:
    """Return the lines that a terminal shows after this output: with line feeds, returns, moves up and erased lines."""
    lines, row, column = [""], 0, 0
    for control, command, text in re.findall(r"\x1b\[([?\d;]*)([A-Za-z])|([\r\n]|[^\r\n\x1b]+)", output):
        if command == "A":
            row -= int(control or 1)
        elif command == "K":
            assert control == "2"
            lines[row] = ""
        elif text == "\r":
            column = 0
        elif text == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif text:
            lines[row] = lines[row].ljust(column)[:column] + text + lines[row][column + len(text) :]
            column += len(text)
    return lines


def read_terminal(leader: int) -> str:
    """Return all that was written to a terminal, which is closed."""
    content = b""
    with os.fdopen(leader, "rb", buffering=0) as terminal, suppress(OSError):  # EIO at the end
        while part := terminal.read(1 << 16):
            content += part
    return content.decode()


@pytest.mark.parametrize("verbose", [False, True])
def test_notes_above_a_progress_bar_stay_whole_and_the_bar_goes(verbose: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    notes = [f"note {number}: {'long ' * 10 * number}".rstrip() for number in range(5)]
    leader, follower = pty.openpty()
    with os.fdopen(follower, "w", encoding="utf-8") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        console = Console(verbose=verbose)
        assert console.is_interactive
        with console.progress(len(notes), "scanning") as advance:
            for note in notes:
                advance(1, "renamed")
                console.note(note)
        console.note("the end")
    output = read_terminal(leader)
    assert "renamed" in output
    shown = [line for line in screen_of(output) if line.strip()]
    assert [line[9:] if verbose else line for line in shown] == [*notes, "the end"]
    assert all(TIMED.fullmatch(line) for line in shown) == verbose


def test_with_verbose_each_note_of_a_scan_has_its_time(model: list[str], tmp_path: Path) -> None:
    images = draw_images(tmp_path / "images", 1)
    result = run_scan(images, *model, "--out", tmp_path / "out", "--verbose", "--false-alarm-rate", 0.1)
    lines = result.stderr.splitlines()
    assert any(line.endswith("there are no good images for a threshold") for line in lines)
    assert all(TIMED.fullmatch(line) for line in lines)
    assert not any(TIMED.fullmatch(line) for line in result.stdout.splitlines())


def test_errors_have_no_time(tmp_path: Path) -> None:
    assert run_scan(tmp_path / "missing", "--verbose").stderr.startswith("aprilcli: error: ")
