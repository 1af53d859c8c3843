"""Run all benchmarks, one after the other, and print their Markdown tables: ``python tests/benchmarks``.

Takes about half an hour on two cores. Exits with 1 if any of them misses a target. Run it on an idle machine.
"""

import subprocess
import sys
from pathlib import Path

ALL = (
    ("bench_scan.py",),
    ("bench_scan.py", "--large", "--runs", "1"),
    ("bench_scan.py", "--large", "--runs", "1", "--engine", "openvino"),
    ("bench_scan.py", "--large", "--runs", "1", "--engine", "openvino", "--precision", "int8"),
    ("bench_start.py",),
    ("bench_start.py", "--large", "--runs", "1"),
    ("bench_train.py",),
    ("bench_memory.py",),
    ("bench_mutual.py",),
    ("bench_bank.py",),
    ("bench_eval.py",),
    ("bench_help.py",),
    ("bench_metrics.py",),
    ("bench_walk.py",),
)


def main():
    failed = []
    for program, *arguments in ALL:
        print(f"\n## {' '.join((program, *arguments))}\n", flush=True)
        command = [sys.executable, str(Path(__file__).with_name(program)), *arguments]
        if subprocess.run(command, check=False).returncode:
            failed.append(" ".join((program, *arguments)))
    print(f"\nmissed a target: {', '.join(failed) or 'none'}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
