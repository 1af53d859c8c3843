"""Rebuild the embedded model from nothing: draw, train, export, draw the samples, measure.

    python weights/tiny/build.py SCRATCH

SCRATCH needs about 10 GB. Seeds and steps are fixed, and the pictures come out bit for bit. The weights do not: the
card says how the script that trained the shipped file differed from this one.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Steps, picture side and products per process of each phase; the run stopped at step 1000 of 1350.
PHASES, STOP = "[[700, 96, 20], [500, 128, 16], [150, 192, 8]]", "1000"


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the scripts beside this one, and stop where it fails."""
    print(">", script, *arguments, flush=True)
    search = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=True, cwd=ROOT, env=os.environ | search)


def main(scratch: Path) -> None:
    """All steps in turn."""
    held_out, products, weights = scratch / "held_out", scratch / "products", scratch / "clip.pt"
    run("draw.py", held_out, "--products", "160", "--seed", "10", "--held-out")
    run("draw.py", products, "--products", "4400", "--seed", "1", "--defects", "subtle")
    run("train_clip.py", products, weights, "--phases", PHASES, "--stop", STOP)
    run("export.py", weights, HERE)
    run("samples.py", ROOT / "tests" / "samples", ROOT / "tests" / "sample_masks")
    run("measure.py", HERE, "--drawn", held_out)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    main(parser.parse_args().scratch.resolve())
