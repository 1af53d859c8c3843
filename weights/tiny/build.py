"""Rebuild the embedded model from scratch: draw, train, export, draw the samples, measure.

    python weights/tiny/build.py SCRATCH

Replaces the model in this folder, tests/samples and tests/sample_masks. SCRATCH needs about 16 GB. The build takes six
hours on two otherwise idle CPU cores. Seeds and numbers of steps are fixed: the images are reproduced bit for bit, and
two rebuilds on the same kind of processor with the same version of PyTorch should give the same weights. The shipped
weights were made in part by older code (see README.md in this folder).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# The five runs of README.md. A phase: steps, image side in pixels, products per process and step.
TRUNK, TRUNK_STEPS = "[[600, 96, 24], [4000, 128, 16]]", "1280"  # constant rate
FALLING = "[[1500, 128, 16], [350, 192, 8], [100, 256, 5]]"  # falling rate
WORN = "[[560, 128, 16], [80, 256, 5]]"  # worn surfaces
WIDER = "[[2500, 128, 16], [650, 192, 8], [240, 256, 5]]"  # ground metal, more products
WIDEST = "[[2400, 128, 16], [1050, 192, 8], [520, 256, 5]]"  # lined metal, compound parts


def run(script: str, *arguments: str | Path) -> None:
    """Run a script of this folder; stop if it fails."""
    print(">", script, *arguments, flush=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, HERE / script, *map(str, arguments)], check=True, cwd=ROOT, env=environment)


def main(scratch: Path) -> None:
    """Run all steps in order."""
    held_out, products, more = (scratch / name for name in ("held_out", "products", "more"))
    ground, lined, compound = (scratch / name for name in ("ground", "lined", "compound"))
    checkpoints = (scratch / f"{name}.pt" for name in ("trunk", "clean", "worn", "wider", "widest"))
    trunk, clean, worn, wider, widest = checkpoints
    run("draw.py", held_out, "--products", "160", "--seed", "10", "--kinds", "held-out")
    run("draw.py", products, "--products", "4200", "--seed", "1")
    run("draw.py", ground, "--products", "1400", "--seed", "2", "--kinds", "ground")
    run("draw.py", lined, "--products", "1200", "--seed", "4", "--kinds", "lined")
    run("draw.py", compound, "--products", "1200", "--seed", "5", "--kinds", "compound")
    run("draw.py", more, "--products", "1500", "--seed", "3")
    run("train_clip.py", trunk, products, "--phases", TRUNK, "--stop", TRUNK_STEPS, "--decay", "0")
    run("train_clip.py", clean, products, "--phases", FALLING, "--start", trunk, "--seed", "2")
    settings = ["--seed", "3", "--rate", "8e-4", "--warm-up", "40", "--processes", "1", "--worn", "0.6"]
    run("train_clip.py", worn, products, "--phases", WORN, "--start", clean, *settings)
    settings = ["--seed", "4", "--rate", "1.5e-3", "--warm-up", "60", "--worn", "0.4"]
    run("train_clip.py", wider, products, more, ground, "--phases", WIDER, "--start", worn, *settings)
    sets = (products, more, ground, lined, compound)
    settings = ["--seed", "5", "--rate", "1.2e-3", "--warm-up", "60", "--worn", "0.4", "--rank-pixels"]
    run("train_clip.py", widest, *sets, "--phases", WIDEST, "--start", wider, *settings)
    run("export.py", widest, HERE)
    run("samples.py", ROOT / "tests" / "samples", ROOT / "tests" / "sample_masks")
    run("measure.py", HERE, "--drawn", held_out)
    run("measure.py", HERE, "--drawn", held_out, "--worn")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scratch", type=Path, help="folder for drawn sets and checkpoints")
    main(parser.parse_args().scratch.resolve())
