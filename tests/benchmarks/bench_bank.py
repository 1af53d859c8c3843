"""Distances to a bank in chunks against the whole matrix of cosines: ``python tests/benchmarks/bench_bank.py``.

One picture of 1369 patches against banks of 10 and 50 references, float16 rows as they are kept; ``--references 300``
for others, ``--width 1024`` for ViT-L. Both ways are timed in turns, the best of five counts; the peak memory of each
is taken in a process of its own (Linux only). Ends with 1 if chunks take more than 1.5 times as long as the whole
matrix, if they need more than 192 MiB beside the bank, or if the distances differ. Meant for an idle machine.
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
    """Eq. 4 in one expression, [B, L, M] cosines at once."""
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
    function(tokens, rows[:PATCHES])  # start the threads
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far, which importing torch may have made
    before = resident_mib("VmRSS:")
    function(tokens, rows)
    return resident_mib("VmHWM:") - before


def measure_peak_apart(*arguments):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure_peak, arguments)


def seconds_in_turns(functions, *arguments, repeat=5):
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
        our_mib = measure_peak_apart(nearest_distance, references, options.width)
        their_mib = measure_peak_apart(whole_matrix, references, options.width)
        tokens, rows = draw(references, options.width)
        ours, theirs = seconds_in_turns((nearest_distance, whole_matrix), tokens, rows)
        apart = float((nearest_distance(tokens, rows) - whole_matrix(tokens, rows)).abs().max())
        failed |= ours > SLOWER * theirs or our_mib > MEMORY_MIB or apart > 1e-5
        print(
            f"{references:4} references of width {options.width}: chunks {ours * 1e3:.0f} ms, +{our_mib:.0f} MiB; "
            f"whole {theirs * 1e3:.0f} ms, +{their_mib:.0f} MiB; "
            f"{ours / theirs:.2f} of the time, {our_mib / their_mib:.2f} of the memory; {apart:.1e} apart"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
