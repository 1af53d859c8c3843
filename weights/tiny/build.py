"""Rebuild the embedded model from nothing: draw, train, export, draw the samples, measure.

    python weights/tiny/build.py SCRATCH

SCRATCH needs about 8 GB. Seeds and steps are fixed; the files come out the same on the same machine and libraries.
"""

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Steps, picture side and products per process of each phase of training.
PHASES = "[[700, 96, 20], [500, 128, 16], [150, 192, 8]]"


def run(script: str, *arguments: str | Path) -> None:
    """Run one of the scripts beside this one, and stop where it fails."""
    print(">", script, *arguments, flush=True)
    subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=True, cwd=ROOT)


def main(scratch: Path) -> None:
    """All steps in turn."""
    run("draw.py", scratch / "held_out", "--products", "160", "--seed", "9", "--held-out")
    run("draw.py", scratch / "products", "--products", "4400", "--seed", "1")
    run("train_clip.py", scratch / "products", scratch / "clip.pt", "--phases", PHASES)
    run("export.py", scratch / "clip.pt", HERE)
    run("samples.py", ROOT / "tests" / "samples", ROOT / "tests" / "sample_masks")
    run("measure.py", HERE, "--drawn", scratch / "held_out")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path)
    main(parser.parse_args().scratch.resolve())
