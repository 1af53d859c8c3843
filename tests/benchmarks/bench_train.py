"""Later epochs of ``train`` against the first, which alone encodes: ``python tests/benchmarks/bench_train.py``.

Trains for three epochs, without composites, on made images of 640x480 pixels with masks, with a ViT of 12 layers, 384
wide, at 336 pixels and random weights. Prints the seconds of the first epoch and the mean of the later ones. Exits with
1 if a later epoch takes more than 0.2 times as long as the first. Run it on an idle machine.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file

from aprilcli.options import TrainOptions
from aprilcli.workflows.train import run_train
from aprilcli.workflows.train_checks import check

LARGEST_RATIO, EPOCHS = 0.2, 3
CONFIG = {
    "embed_dim": 256,
    "vision_cfg": {"image_size": 336, "layers": 12, "width": 384, "head_width": 64, "patch_size": 14},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}


class Timer:
    """A console that records when each epoch ends."""

    verbose = False

    def __init__(self):
        self.times = []

    def note(self, text):
        if text.startswith("epoch "):
            self.times.append(time.perf_counter())
        else:
            print(text, file=sys.stderr)

    note_once = detail = note

    @contextlib.contextmanager
    def progress(self, total, text):
        self.times = [time.perf_counter()]  # the last bar is that of the training
        yield lambda *_: None


def write_model(folder):
    torch.manual_seed(0)
    folder.mkdir()
    save_file(open_clip.CLIP(**CONFIG).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": CONFIG, "preprocess_cfg": {}}))
    return folder


def draw(root, count):
    rng = np.random.default_rng(0)
    for number in range(count):
        kind = "good" if number % 2 else "spot"
        pixels = rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        image = root / "part" / "test" / kind / f"{number:03}.png"
        image.parent.mkdir(parents=True, exist_ok=True)
        if kind == "spot":
            mask = np.zeros((480, 640), np.uint8)
            mask[100:200, 100:300] = 255
            path = root / "part" / "ground_truth" / kind / f"{number:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
        Image.fromarray(pixels).save(image)
    (root / "part" / "train" / "good").mkdir(parents=True)
    Image.fromarray(pixels).save(root / "part" / "train" / "good" / "000.png")
    return root


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        timer = Timer()
        training = TrainOptions(
            dataset=draw(Path(folder, "parts"), options.images),
            out=Path(folder, "projector.safetensors"),
            model=str(write_model(Path(folder, "model"))),
            image_size=(336,),
            stages=(3, 6, 9, 12),
            device="cpu",
            mosaic=0.0,
            epochs=EPOCHS,
        )
        run_train(training, check(training), timer)
    first, *later = np.diff(timer.times)
    ratio = np.mean(later) / first
    print("| what | value | target |")
    print(f"| first epoch of {options.images} images | {first:.2f} s | |")
    print(f"| later epochs, mean | {np.mean(later):.2f} s | |")
    print(f"| later against first epoch | {ratio:.3f} | at most {LARGEST_RATIO} |")
    return int(ratio > LARGEST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
