"""Rebuild the embedded model from nothing: draw, train, export, draw the samples, measure.

    python weights/tiny/build.py SCRATCH

SCRATCH needs about 8 GB; two quiet cores need two hours. Seeds and steps are fixed: the pictures come out bit for bit,
and on the same kind of processor with the same version of PyTorch the weights do too.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Steps, picture side and products per process of each phase: rate constant, rate falling, surfaces worn.
TRUNK, TRUNK_STEPS = "[[600, 96, 24], [4000, 128, 16]]", "1280"
FALLING = "[[1500, 128, 16], [350, 192, 8], [100, 256, 5]]"
WORN = "[[560, 128, 16], [80, 256, 5]]"


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the scripts beside this one, and stop where it fails."""
    print(">", script, *arguments, flush=True)
    search = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=True, cwd=ROOT, env=os.environ | search)


def main(scratch: Path) -> None:
    """All steps in turn."""
    held_out, products = scratch / "held_out", scratch / "products"
    trunk, clean, worn = scratch / "trunk.pt", scratch / "clean.pt", scratch / "worn.pt"
    run("draw.py", held_out, "--products", "160", "--seed", "10", "--held-out")
    run("draw.py", products, "--products", "4200", "--seed", "1")
    run("train_clip.py", products, trunk, "--phases", TRUNK, "--stop", TRUNK_STEPS, "--decay", "0")
    run("train_clip.py", products, clean, "--phases", FALLING, "--start", trunk, "--seed", "2")
    gently = ("--seed", "3", "--rate", "8e-4", "--warm-up", "40", "--processes", "1", "--worn", "0.6")
    run("train_clip.py", products, worn, "--phases", WORN, "--start", clean, *gently)
    run("export.py", worn, HERE)
    run("samples.py", ROOT / "tests" / "samples", ROOT / "tests" / "sample_masks")
    run("measure.py", HERE, "--drawn", held_out)
    run("measure.py", HERE, "--drawn", held_out, "--worn")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    main(parser.parse_args().scratch.resolve())
