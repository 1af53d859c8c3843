"""Memory and time of listing and decoding folders of many tiny pictures; each size runs in a process of its own.

Run as ``python tests/benchmarks/bench_walk.py [SMALL LARGE]``; 1,000 and 200,000 files unless said otherwise.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from aprilcli.io.images import read_image
from aprilcli.io.walk import find_images

LAYOUTS = {"one folder": 10**9, "folders of 500": 500}


def make(folder: Path, count: int, per_folder: int) -> None:
    """Fill a folder with 8×8 pictures."""
    stream = BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "PPM")
    for index in range(count):
        place = folder / f"batch{index // per_folder:06}"
        if index % per_folder == 0:
            place.mkdir()
        (place / f"photo of part {index:07}.pgm").write_bytes(stream.getvalue())


def peak_kib() -> int:
    """Return the most memory this process has had resident (Linux; rusage would count the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def measure(folder: Path, decode: bool) -> None:
    """Walk, and print files, seconds, peak memory in KiB and what of it is new since the imports."""
    before = peak_kib()
    began = time.perf_counter()
    count, last = 0, ""
    for found in find_images(folder):
        assert last < found.relative
        count, last = count + 1, found.relative
        if decode:
            read_image(found.path)
    seconds = time.perf_counter() - began
    print(count, f"{seconds:.2f}", peak_kib(), peak_kib() - before)


def main(small: int, large: int) -> None:
    """Print a line per layout and task, and the ratio of peak memory between the two sizes."""
    for layout, per_folder in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as base:
            for task in ("list", "decode"):
                peaks = []
                for count in (small, large):
                    folder = Path(base) / str(count)
                    if not folder.exists():
                        folder.mkdir()
                        make(folder, count, per_folder)
                    command = [sys.executable, __file__, "--measure", str(folder), task]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                    files, seconds, peak, grown = output
                    peaks.append(int(peak))
                    print(f"{layout}, {task}: {files} files in {seconds} s, peak {peak} KiB, of it {grown} KiB new")
                print(f"{layout}, {task}: peak memory ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), decode=sys.argv[3] == "decode")
    else:
        main(*(map(int, sys.argv[1:]) if len(sys.argv) == 3 else (1_000, 200_000)))
