"""Distances to a bank, in chunks and by the complete matrix of cosines: ``python tests/benchmarks/bench_bank.py``.

One image of 1369 patches against banks of 10 and 50 reference images with float16 rows, as in a stored bank. Use
``--references 300`` for another number and ``--width 1024`` for ViT-L. The two methods are timed alternately, and the
best of five runs counts; the peak memory of each is measured in a separate process (Linux only). Prints both ratios.
Exits with 1 if the chunks take more than 1.5 times as long as the complete matrix, need more than 192 MiB beyond the
bank, or give other distances. Run it on an idle machine.
"""

import argparse
import multiprocessing
import sys
import time
from pathlib import Path

import torch

from aprilcli.core.nearest import nearest_distance, unit_rows

PATCHES, SLOWER, MEMORY_MIB = 1369, 1.5, 192
STATUS = Path("/proc/self/status")


def whole_matrix(patch_tokens, bank_features):
    """Eq. 4 in one expression, with all cosines [B, L, M] in memory."""
    return 1 - (unit_rows(patch_tokens) @ unit_rows(bank_features).T).amax(dim=-1)


def resident_mib(line):
    return next(int(entry.split()[1]) for entry in STATUS.read_text().splitlines() if entry.startswith(line)) / 1024


def draw(references, width):
    generator = torch.Generator().manual_seed(0)
    rows = torch.empty(references * PATCHES, width, dtype=torch.float16)
    for chunk in torch.split(rows, PATCHES):
        chunk.copy_(unit_rows(1 + torch.randn(PATCHES, width, generator=generator)))
    return 1 + torch.randn(1, PATCHES, width, generator=generator), rows


def measure_peak(function, references, width):
    tokens, rows = draw(references, width)
    function(tokens, rows[:PATCHES])  # starts the threads
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which may come from importing torch
    before = resident_mib("VmRSS:")
    function(tokens, rows)
    return resident_mib("VmHWM:") - before


def measure_peak_in_process(*arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_peak, arguments)


def seconds_alternately(functions, *arguments, repeat=5):
    best = dict.fromkeys(functions, float("inf"))
    for _ in range(repeat):
        for function in functions:
            start = time.perf_counter()
            function(*arguments)
            best[function] = min(best[function], time.perf_counter() - start)
    return best.values()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--references", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--width", type=int, default=256)
    options = parser.parse_args()
    failed = False
    for references in options.references:
        our_mib = measure_peak_in_process(nearest_distance, references, options.width)
        their_mib = measure_peak_in_process(whole_matrix, references, options.width)
        tokens, rows = draw(references, options.width)
        ours, theirs = seconds_alternately((nearest_distance, whole_matrix), tokens, rows)
        difference = float((nearest_distance(tokens, rows) - whole_matrix(tokens, rows)).abs().max())
        failed |= ours > SLOWER * theirs or our_mib > MEMORY_MIB or difference > 1e-5
        print(
            f"{references:4} references of width {options.width}: chunks {ours * 1e3:.0f} ms, +{our_mib:.0f} MiB; "
            f"complete matrix {theirs * 1e3:.0f} ms, +{their_mib:.0f} MiB; ratio of times {ours / theirs:.2f}, "
            f"of memory {our_mib / their_mib:.2f}; largest difference {difference:.1e}"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
