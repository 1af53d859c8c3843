"""`scan --mutual` of a small and a large folder: ``python tests/benchmarks/bench_mutual.py``. Linux only.

Scans 250 and 2,000 (``--many``) images of 64x64 pixels with the embedded model at 64 pixels. Prints seconds per image
and peak memory of both as lines of a Markdown table. Exits with 1 if an image of the large folder takes more than 1.2
times as long: subsets keep the work per image constant.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

FEW, MOST = 250, 1.2  # images; one subset


def draw(folder, count):
    base = np.random.default_rng(0).integers(90, 160, (64, 64, 3))
    for number in range(count):
        noise = np.random.default_rng(number + 1).normal(0, 8, base.shape)
        path = folder / f"{number // 1000:02}" / f"{number:06}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8)).save(path, compress_level=1)


def scan(folder, out):
    command = [sys.executable, "-m", "aprilcli", "scan", folder, "--mutual", "--image-size", "64", "--out", out]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--quiet"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    errors = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(errors)
    return time.monotonic() - began, usage.ru_maxrss / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--many", type=int, default=2000)
    many = parser.parse_args().many
    seconds = {}
    print("| images | seconds per image | peak memory |")
    print("|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for count in (FEW, many):
            draw(Path(temporary, str(count)), count)
            total, peak = scan(Path(temporary, str(count)), Path(temporary, f"out{count}"))
            seconds[count] = total / count
            print(f"| {count:,} | {total / count:.4f} | {peak:.0f} MiB |", flush=True)
    ratio = seconds[many] / seconds[FEW]
    print(f"\nratio {ratio:.2f}, at most {MOST}")
    return int(ratio > MOST)


if __name__ == "__main__":
    sys.exit(main())
