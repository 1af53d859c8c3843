"""Text is shown on one line, without control characters."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aprilcli.text import first_line, printable, quoted


def test_printable_leaves_ordinary_names_unchanged() -> None:
    assert printable("Größe 1/日本 a.png") == "Größe 1/日本 a.png"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (Path("a\nb"), "a\\nb"),
        ("tab\t\x1b[31m", "tab\\t\\x1b[31m"),
        (os.fsdecode(b"\xff.png"), "\\xff.png"),
        ("\u2028", "\\u2028"),
        ("\ud800", "\\ud800"),
    ],
)
def test_printable_escapes_other_characters(text: Path | str, expected: str) -> None:
    assert printable(text) == expected


def test_quoted_is_short_ascii() -> None:
    assert quoted("a\n漢") == "'a\\n\\u6f22'"
    assert quoted("x" * 80) == f"'{'x' * 80}'"
    assert quoted("x" * 81) == f"'{'x' * 79}\\u2026'"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("one\ntwo"), "one"),
        (ValueError("\n  padded\n"), "padded"),
        (ValueError(), "ValueError"),
        (ValueError("\x1b[31m"), "\\x1b[31m"),
        (ValueError("x" * 300), "x" * 200),
    ],
)
def test_first_line(error: Exception, expected: str) -> None:
    assert first_line(error) == expected
