"""Enrolled parts: which there are. Imports no torch."""

from __future__ import annotations

import difflib
from contextlib import suppress
from pathlib import Path

from aprilcli.core.bank_path import SUFFIX, bank_path
from aprilcli.errors import InputError
from aprilcli.text import printable

LISTED = 10  # parts that an error names; the others are counted


def find_bank(part: str, banks: Path) -> Path:
    """Return the path of a part's bank. For a missing bank, the InputError lists the parts that its folder has."""
    path = bank_path(part, banks)
    with suppress(OSError):  # e.g. a name too long or a folder without rights: reading it explains it
        if not path.exists():
            raise InputError(f"{path.absolute()}: {_no_bank(path)}")
    return path


def _no_bank(path: Path) -> str:
    parts = sorted(printable(file.stem) for file in path.parent.glob(f"*{SUFFIX}"))
    near = difflib.get_close_matches(path.stem, parts, 1)
    advice = f"use --part {near[0]}" if near else "choose another folder with --banks"
    more = f" and {len(parts) - LISTED} more" if len(parts) > LISTED else ""
    listed = f"; parts in this folder: {', '.join(parts[:LISTED])}{more}" if parts else ""
    return f"there is no such bank; enroll the part first, or {advice}{listed}"
