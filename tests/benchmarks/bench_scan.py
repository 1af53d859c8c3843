"""`scan` beside the bare encoder: ``python tests/benchmarks/bench_scan.py [--large] [--engine openvino]``.

JPEGs of 1200×900 pixels are scanned with maps at source size: zero-shot, with 10 references, and with as many rows as
300 references thinned to 10 % have. The seconds per image are those of a long run less those of a short one, so loading
does not count. Beside each run, the encoder alone encodes images of the same size in a process of its own; the runs
alternate, and the best of ``--runs`` counts. The model has random weights: a ViT of 12 layers × 384 at 336 pixels, or
with ``--large`` the ViT-L/14 at 518. Prints lines of a Markdown table. Exits with 1 if a ratio is above its target.
Run it on an idle machine.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from bench_start import LARGE_SIZE, seconds_to_lines, write_model
from PIL import Image

from aprilcli.core.model_loading import load_backbone
from aprilcli.core.projector import save_projector
from aprilcli.core.training import new_projector

MIDDLE = {
    "embed_dim": 384,
    "vision_cfg": {"image_size": 336, "layers": 12, "width": 384, "patch_size": 14, "head_width": 64},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2},
}
MIDDLE_SIZE = 336
TARGETS = {"zero-shot": 1.10, "10 references": 1.15, "30 references": 1.50}
ENCODE = """
import sys, time
import numpy as np
from aprilcli.core.model_loading import load_backbone
model, size, engine, count = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
encoder = load_backbone(model, image_size=size, device="cpu", engine=engine).encoder
pixels = np.random.default_rng(0).normal(size=(1, 3, size, size)).astype(np.float32)
encoder.encode(pixels)
print("ready", flush=True)
for _ in range(count):
    encoder.encode(pixels)
print("done", flush=True)
"""


def draw_images(folder, count, seed):
    """Draw blurred noise, which has edges at all scales as photographs do, with some texture."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    for index in range(count):
        image = Image.new("RGB", (1200, 900))
        for scale in (64, 16, 4):
            noise = rng.integers(0, 256, (900 // scale, 1200 // scale, 3), dtype=np.uint8)
            layer = Image.fromarray(noise).resize((1200, 900), Image.Resampling.BICUBIC)
            image = Image.blend(image, layer, 0.5 if scale > 4 else 0.2)
        image.save(folder / f"{index:03}.jpg", quality=90)


def aprilcli(*arguments):
    command = [sys.executable, "-m", "aprilcli", *map(str, arguments), "--device", "cpu", "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)


def seconds_of_scan(images, out, *options):
    began = time.perf_counter()
    aprilcli("scan", images, "--out", out, "--overwrite", *options)
    return time.perf_counter() - began


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--images", type=int, help="of the long run", default=None)
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    size = LARGE_SIZE if options.large else MIDDLE_SIZE
    short, long = (1, options.images or 6) if options.large else (4, options.images or 44)
    failed = False
    print("| what | seconds per image | encoder alone | ratio | target |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["APRILCLI_CACHE"] = str(folder / "cache")
        model = folder / "model"
        write_model(model, None if options.large else MIDDLE)
        spec = load_backbone(str(model), image_size=size, device="cpu").spec
        save_projector(new_projector(spec, 0), model / "projector.safetensors")
        draw_images(folder / "references", 30, 1)
        draw_images(folder / "short", short, 2)
        draw_images(folder / "long", long, 2)
        common = ["--model", model, "--image-size", size, "--engine", options.engine]
        banks = folder / "banks"
        for count in (10, 30):
            references = sorted((folder / "references").iterdir())[:count]
            aprilcli("enroll", *references, "--part", f"p{count}", "--banks", banks, *common)
        modes = {
            "zero-shot": common,
            "10 references": ["--part", "p10", "--banks", banks],
            "30 references": ["--part", "p30", "--banks", banks],
        }
        for name, arguments in modes.items():
            per_image, alone = float("inf"), float("inf")
            for _ in range(options.runs):
                took = [seconds_of_scan(folder / images, folder / "out", *arguments) for images in ("short", "long")]
                per_image = min(per_image, (took[1] - took[0]) / (long - short))
                _, encoding = seconds_to_lines(ENCODE, model, size, options.engine, long, environment=os.environ)
                alone = min(alone, encoding / long)
            ratio = per_image / alone
            failed |= ratio > TARGETS[name]
            print(f"| scan, {name} | {per_image:.3f} | {alone:.3f} | {ratio:.2f} | {TARGETS[name]} |", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
