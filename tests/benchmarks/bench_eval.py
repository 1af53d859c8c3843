"""The cost of sixteen settings relative to one: run ``python tests/benchmarks/bench_eval.py [--images 115]``.

A CLIP with the towers of ViT-B/16 and random weights, and an object with as many test images of noise as an object of
MVTec AD has on average (1725 / 15). ``eval`` runs with 4 shots and one seed, and with 0, 1, 2, 4 shots and five seeds,
each in a separate process; the times exclude loading the model. Exits with 1 if sixteen settings take more than 1.5
times the processor time of one.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

LIMIT = 1.5
ONE = ("--shots", "4", "--seeds", "1")
SIXTEEN = ("--shots", "0,1,2,4", "--seeds", "5")
TRAIN = 40  # good images from which references are drawn


def write_model(folder):
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    from aprilcli.core.model_loading import load_backbone
    from aprilcli.core.projector import Projector, save_projector

    torch.manual_seed(0)
    config = open_clip.get_model_config("ViT-B-16")
    model = open_clip.create_model("ViT-B-16")
    folder.mkdir()
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    save_projector(Projector(load_backbone(str(folder), device="cpu").spec), folder / "projector.safetensors")


def write_object(folder, images):
    """Draw images of noise; every other test image has a square defect and a mask."""
    rng = np.random.default_rng(0)

    def draw(path, box=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
        if box is not None:
            image.paste((200, 40, 40), box)
        image.save(path)

    for number in range(TRAIN):
        draw(folder / "train" / "good" / f"{number:03}.png")
    for number in range(images):
        if number % 2:
            draw(folder / "test" / "good" / f"{number:03}.png")
            continue
        x, y = (int(value) for value in rng.integers(0, 220, 2))
        draw(folder / "test" / "cut" / f"{number:03}.png", (x, y, x + 60, y + 60))
        mask = Image.new("L", (300, 300))
        mask.paste(255, (x, y, x + 60, y + 60))
        path = folder / "ground_truth" / "cut" / f"{number:03}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        mask.save(path)


def measure(root, settings):
    """Return the wall time and the processor time of an evaluation in seconds, without loading the model."""
    from typer.testing import CliRunner

    from aprilcli.cli import app
    from aprilcli.core.model_loading import load_backbone

    def clocks():
        return np.array([time.perf_counter(), time.process_time()])

    model = str(root / "model")
    load_backbone(model, device="cpu")  # imports the libraries and fills the disk's cache
    start = clocks()
    load_backbone(model, device="cpu")
    loaded = clocks()
    options = ["--out", str(root / "out"), "--model", model, "--device", "cpu", "--overwrite", *settings]
    result = CliRunner().invoke(app, ["eval", str(root / "bolt"), *options])
    assert result.exit_code == 0, result.output
    return (clocks() - loaded) - (loaded - start)


def measure_in_process(root, name):
    run = subprocess.run(
        [sys.executable, __file__, "--measure", name, str(root)], check=True, capture_output=True, text=True
    )
    return tuple(float(value) for value in run.stdout.split()[-2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=115)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, root = arguments.measure
        print(*measure(Path(root), {"one": ONE, "sixteen": SIXTEEN}[name]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(root / "model")
        write_object(root / "bolt", arguments.images)
        # The two runs with one setting show how idle the machine is.
        runs = [measure_in_process(root, name) for name in ("one", "sixteen", "one")]
    (wall, processor), (wall_16, processor_16), (wall_again, processor_again) = runs
    ratio = processor_16 / ((processor + processor_again) / 2)
    print(f"{arguments.images} test images; one setting {wall:.1f} s and {wall_again:.1f} s, sixteen {wall_16:.1f} s")
    wall_ratio = wall_16 / ((wall + wall_again) / 2)
    print(f"ratio of wall times {wall_ratio:.2f}, of processor times {ratio:.2f} (at most {LIMIT})")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
