"""The time of `aprilcli --help` relative to importing typer and rich, as the ratio of the medians."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

RUNS = 9
LIMIT = 3.0
HELP = [sys.executable, "-m", "aprilcli", "--help"]
IMPORTS = [sys.executable, "-c", "import typer, rich.console, rich.table, rich.panel, rich.markup"]


def seconds(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, capture_output=True, check=True)
    return time.perf_counter() - began


pairs = [(seconds(HELP), seconds(IMPORTS)) for _ in range(RUNS + 1)][1:]  # the first run fills the disk's cache
shown, imported = (statistics.median(times) for times in zip(*pairs, strict=True))
print(f"--help {shown:.3f} s, typer and rich {imported:.3f} s, ratio {shown / imported:.2f} (at most {LIMIT})")
sys.exit(shown / imported > LIMIT)
