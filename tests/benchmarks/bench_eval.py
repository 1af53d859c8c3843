"""What sixteen settings cost over one: run ``python tests/benchmarks/bench_eval.py [--pictures 115]``.

A CLIP with ViT-B/16's towers and random weights, and one object of noise with as many test pictures as one of MVTec AD
has on average (1725 / 15). ``eval`` runs with 4 shots and one seed, and with 0, 1, 2, 4 shots and five seeds; each in a
process of its own, loading included in neither time. Ends with 1 if the sixteen take more than 1.5 times the one.
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
ONE = {"shots": (4,), "seeds": 1}
SIXTEEN = {"shots": (0, 1, 2, 4), "seeds": 5}
TRAIN = 40  # good photos to draw from


def write_model(folder):
    import json

    import open_clip
    import torch
    from safetensors.torch import save_file

    from aprilcli.core.backbone import load_backbone
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


def write_object(folder, pictures):
    """Draw noise; every other test picture has a square defect with its mask."""
    rng = np.random.default_rng(0)

    def draw(path, box=None):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 256, (300, 300, 3), dtype=np.uint8))
        if box is not None:
            picture.paste((200, 40, 40), box)
        picture.save(path)

    for number in range(TRAIN):
        draw(folder / "train" / "good" / f"{number:03}.png")
    for number in range(pictures):
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
    """Return the seconds of one evaluation: wall time, and of all threads, without loading the model."""
    from aprilcli.options import EvalOptions
    from aprilcli.workflows import evaluate
    from aprilcli.workflows.console import Console

    paths = {"dataset": root / "bolt", "out": root / "out", "model": str(root / "model")}
    options = EvalOptions(**paths, device="cpu", overwrite=True, **settings)
    loaded = evaluate.load_model(options, Console(quiet=True))
    evaluate.load_model = lambda *_: loaded
    wall, processor = time.perf_counter(), time.process_time()
    evaluate.run_eval(options, Console(quiet=True))
    return time.perf_counter() - wall, time.process_time() - processor


def measure_apart(root, name):
    run = subprocess.run(
        [sys.executable, __file__, "--measure", name, str(root)], check=True, capture_output=True, text=True
    )
    return tuple(float(value) for value in run.stdout.split()[-2:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=115)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        name, root = arguments.measure
        print(*measure(Path(root), {"one": ONE, "sixteen": SIXTEEN}[name]))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_model(root / "model")
        write_object(root / "bolt", arguments.pictures)
        # One, sixteen, one again: the ones show how quiet the machine is.
        runs = [measure_apart(root, name) for name in ("one", "sixteen", "one")]
    (wall, processor), (wall_16, processor_16), (wall_again, processor_again) = runs
    ratio = processor_16 / ((processor + processor_again) / 2)
    print(
        f"{arguments.pictures} test pictures; one setting {wall:.1f} s and {wall_again:.1f} s, sixteen {wall_16:.1f} s"
    )
    print(f"wall time: {wall_16 / ((wall + wall_again) / 2):.2f} times that of one; processor time: {ratio:.2f} times")
    return 0 if ratio <= LIMIT else 1


if __name__ == "__main__":
    sys.exit(main())
