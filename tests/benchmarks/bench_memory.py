"""Peak memory of `scan` for few and many images: ``python tests/benchmarks/bench_memory.py``. Linux only.

Scans 100 and 2,000 (``--many``) JPEGs of 640x480 pixels with the embedded model at 256 pixels. Prints the peak memory
of both processes as lines of a Markdown table. Exits with 1 if they differ by more than 50 MiB.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

FEW, MOST_MIB = 100, 50
KINDS = 20  # different images; the others are links to these


def draw(folder, count):
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        path = folder / f"{index:05}.jpg"
        if index < KINDS:
            noise = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC).save(path, quality=90)
        else:
            path.hardlink_to(folder / f"{index % KINDS:05}.jpg")


def peak_mib(folder, out):
    command = [sys.executable, "-m", "aprilcli", "scan", folder, "--out", out, "--image-size", "256", "--quiet"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(errors)
    return usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=2000)
    many = parser.parse_args().many
    peaks = {}
    with tempfile.TemporaryDirectory() as temporary:
        for count in (FEW, many):
            draw(Path(temporary, str(count)), count)
            peaks[count] = peak_mib(Path(temporary, str(count)), Path(temporary, f"out{count}"))
    difference = abs(peaks[many] - peaks[FEW])
    print("| what | value | target |")
    print("|---|---|---|")
    for count, peak in peaks.items():
        print(f"| peak memory, {count:,} images | {peak:.0f} MiB | |")
    print(f"| difference | {difference:.0f} MiB | at most {MOST_MIB} MiB |")
    return int(difference > MOST_MIB)


if __name__ == "__main__":
    sys.exit(main())
