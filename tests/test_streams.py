"""What is printed: in narrow encodings, to closed, full and broken streams, in terminals and files of any kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.table import Table

from aprilcli.workflows.console import Console

NAMES = "größe, 日本, шайба, ±, \udcff"
PRINT = "import sys; from aprilcli.streams import make_tolerant; make_tolerant(); print(sys.argv[1]);"
PRINT += "print(sys.argv[1], file=sys.stderr)"
VERSION = f"{sys.executable} -m aprilcli --version"
USAGE = f"{sys.executable} -m aprilcli --nosuch"


@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "cp932", "gbk", "latin-1", "ascii", "utf-8"])
def test_characters_that_an_encoding_lacks_are_escaped(encoding: str) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    result = subprocess.run([sys.executable, "-c", PRINT, NAMES], capture_output=True, check=True, env=environment)
    expected = NAMES.encode(encoding, "backslashreplace")
    assert (result.stdout.strip(), result.stderr.strip()) == (expected, expected)


def test_an_error_about_a_name_that_the_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "aprilcli", "scan", str(tmp_path / "日本")]
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert result.returncode == 1
    assert result.stderr.startswith(b"aprilcli: error: ")
    assert b"\\u65e5\\u672c" in result.stderr
    assert result.stderr.count(b"\n") == 1


@pytest.mark.parametrize(
    ("command", "code", "reason"),
    [
        (f"{VERSION} >&-", 1, "standard output: cannot be written (Bad file descriptor)"),
        (f"{VERSION} > /dev/full", 1, "standard output: cannot be written (No space left on device)"),
        (f"{{ sleep 0.1; {VERSION}; }} | true; exit ${{PIPESTATUS[0]}}", 0, ""),
        (f"{VERSION} 2>&- | cat; exit ${{PIPESTATUS[0]}}", 0, ""),
        (f"{VERSION} <&- >&- 2>&-", 1, ""),
        (f"{USAGE} 2> /dev/full", 2, ""),
        (f"{USAGE} 2>&-", 2, ""),
    ],
)
def test_a_stream_that_cannot_be_written_is_one_line_or_none(command: str, code: int, reason: str) -> None:
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == (1 if reason else 0)
    assert reason in result.stderr


def test_a_summary_that_cannot_be_written_leaves_the_exit_code_of_the_scan(tmp_path: Path) -> None:
    samples = Path(__file__).parent / "samples"
    scan = f"{sys.executable} -m aprilcli scan {samples} --threshold 0 --fail-on-anomaly --no-maps --out {tmp_path}/out"
    result = subprocess.run(["bash", "-c", f"{scan} > /dev/full"], capture_output=True, text=True, check=False)
    assert result.returncode == 4
    assert "standard output: cannot be written" in result.stderr


@pytest.mark.parametrize(
    "variables",
    [
        {"FORCE_COLOR": "1", "COLUMNS": "20"},
        {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "0"},
        {"TTY_COMPATIBLE": "1", "TTY_INTERACTIVE": "1", "COLUMNS": "abc"},
        {"GITHUB_ACTIONS": "true", "COLUMNS": "1"},
    ],
)
def test_a_file_gets_neither_bars_nor_colors_nor_cut_lines(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    console, long = Console(), "a long line " * 20
    with console.progress(3, "scanning") as advance:
        advance(1)
    console.note(long)
    console.result(long)
    table = Table("object", "value")
    table.add_row(long.strip(), "12.5")
    console.result(table)
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [long]
    assert printed.out.splitlines()[0] == long
    assert any(long.strip() in line and "12.5" in line for line in printed.out.splitlines())
    assert "\x1b" not in printed.out


def test_help_is_plain_and_complete_in_any_terminal() -> None:
    variables = {"FORCE_COLOR": "1", "GITHUB_ACTIONS": "true", "COLUMNS": "20", "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "aprilcli", "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | variables).stdout
    assert "\x1b" not in shown
    assert "Train a projector on images with known defects; the model itself stays as it is." in shown
