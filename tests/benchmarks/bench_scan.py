"""`scan` beside its encoder and beside a plain loop: ``python tests/benchmarks/bench_scan.py [--large]``.

JPEGs of 1200x900 pixels are scanned with maps at source size: zero-shot, with 10 references, and with as many rows as
300 references thinned to 10 % have (not with ``--large``). The seconds per image are those of a long scan less those of
a short one, so loading does not count. In processes of their own: the encoder alone, open_clip's own tower, and a plain
loop as research programs have it, one step after the other: decode, encode (twice with references), all distances as
one matrix, upsample, write. All take turns, and the best of ``--runs`` counts. The model has random weights: a ViT of
12 layers x 384 at 336 pixels, or with ``--large`` the ViT-L/14 at 518. ``--engine`` and ``--precision`` are those of
the scans. Prints lines of a Markdown table. Exits with 1 where a target is missed. Run it on an idle machine.
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
FEW, MANY = 10, 30  # references; 300 thinned to 10 % have the rows of 30

ENCODE = """
import sys
import numpy as np
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.towers.base import Tower
import torch
model, size, engine, precision, count, own = *sys.argv[1:5], int(sys.argv[5]), sys.argv[6]
pixels = np.random.default_rng(0).normal(size=(1, 3, int(size), int(size))).astype(np.float32)
encoder = load_backbone(model, image_size=int(size), device="cpu", engine=engine, precision=precision).encoder

def encode():
    if own == "open_clip":
        with torch.inference_mode():
            Tower.encode(encoder.tower, torch.from_numpy(pixels), encoder.spec.stages)
    else:
        encoder.encode(pixels)

encode()
print("ready", flush=True)
for _ in range(count):
    encode()
print("done", flush=True)
"""
PLAIN = """
import sys
from pathlib import Path
import numpy as np
import tifffile
import torch
import torch.nn.functional as F
from PIL import Image
from aprilcli.core.model_loading import load_backbone
from aprilcli.core.projector import load_projector
from aprilcli.core.towers.base import Tower
model, size, folder, references = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
encoder = load_backbone(model, image_size=size, device="cpu").encoder
projector = load_projector(None, model, encoder.spec)
text = F.normalize(torch.randn(2, encoder.spec.joint_width, generator=torch.Generator().manual_seed(0)), dim=-1)

def encode(pixels):
    _, outputs = Tower.encode(encoder.tower, pixels, encoder.spec.stages)
    return [tokens.flatten(2).transpose(1, 2) for tokens in outputs]

def upsample(grid):
    return F.interpolate(grid, size=(size, size), mode="bilinear", align_corners=True)

with torch.inference_mode():
    tokens = encode(torch.zeros(1, 3, size, size))
    side = int(tokens[0].shape[1] ** 0.5)
    banks = [F.normalize(torch.randn(references * side**2, t.shape[2]), dim=-1) for t in tokens] if references else []
    print("ready", flush=True)
    for path in sorted(folder.iterdir()):
        image = Image.open(path).convert("RGB")
        array = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC), np.float32) / 255
        pixels = torch.from_numpy((array - 0.5) / 0.5).permute(2, 0, 1)[None]
        total = torch.zeros(1, size, size)
        for projected in projector(tuple(encode(pixels))):
            logits = 100 * F.normalize(projected, dim=-1) @ text.T
            total += upsample(logits.permute(0, 2, 1).reshape(1, 2, side, side)).softmax(dim=1)[:, 1]
        if banks:
            for tokens, bank in zip(encode(pixels), banks):
                distances = (1 - F.normalize(tokens[0], dim=-1) @ bank.T).min(dim=1).values
                total += upsample(distances.reshape(1, 1, side, side))[:, 0]
        values = F.interpolate(total[None], size=image.size[::-1], mode="bilinear")[0, 0].numpy()
        tifffile.imwrite(sys.argv[5], values, compression="zlib")
    print("done", flush=True)
"""


def draw_images(folder, count, seed):
    """Draw blurred noise with some texture, which has edges at several scales as photographs do."""
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


def measure(folder, model, size, counts, options):
    """Return the best seconds per image of everything that is compared."""
    short, long = counts
    settings = ["--image-size", size, "--engine", options.engine, "--precision", options.precision]
    banks = folder / "banks"
    banked = (FEW,) if options.large else (FEW, MANY)
    for references in banked:
        images = sorted((folder / "references").iterdir())[:references]
        aprilcli("enroll", *images, "--part", f"p{references}", "--banks", banks, "--model", model, *settings)
    scans = {
        "scan": ["--model", model, *settings],
        **{f"scan, {count} references": ["--part", f"p{count}", "--banks", banks] for count in banked},
    }
    best = {}
    for _ in range(options.runs):
        found = {}
        for name, arguments in scans.items():
            took = [seconds_of_scan(folder / images, folder / "out", *arguments) for images in ("short", "long")]
            found[name] = (took[1] - took[0]) / (long - short)
        own = () if options.precision == "int8" else ("ours",)  # an int8 encoder needs images; its scan tells
        for tower in (*own, "open_clip"):
            engine = ("torch", "fp32") if tower == "open_clip" else (options.engine, options.precision)
            _, took = seconds_to_lines(ENCODE, model, size, *engine, long, tower, environment=os.environ)
            found[f"encoder, {tower}"] = took / long
        for references in (0, FEW):
            arguments = (model, size, folder / "long", references, folder / "plain.tiff")
            _, took = seconds_to_lines(PLAIN, *arguments, environment=os.environ)
            found[f"plain loop, {references} references"] = took / long
        best = {name: min(value, best.get(name, value)) for name, value in found.items()}
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--engine", default="torch")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--images", type=int, help="of the long scan")
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    size = LARGE_SIZE if options.large else MIDDLE_SIZE
    counts = (1, options.images or 4) if options.large else (4, options.images or 44)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["APRILCLI_CACHE"] = str(folder / "cache")
        model = folder / "model"
        write_model(model, None if options.large else MIDDLE)
        spec = load_backbone(str(model), image_size=size, device="cpu").spec
        save_projector(new_projector(spec, 0), model / "projector.safetensors")
        draw_images(folder / "references", MANY, 1)
        draw_images(folder / "short", counts[0], 2)
        draw_images(folder / "long", counts[1], 2)
        best = measure(folder, model, size, counts, options)
    is_int8 = options.precision == "int8"
    few, many = f"scan, {FEW} references", f"scan, {MANY} references"
    ratios = [  # what, against what, largest ratio
        ("scan", "encoder, ours", 1.10),
        (few, "scan", 1.15),
        (many, "scan", 1.50),
        ("encoder, ours", "encoder, open_clip", 0.82 if options.large else 1.0),
        ("scan", "plain loop, 0 references", 1 / (3 if is_int8 else 1.7)),
        (few, f"plain loop, {FEW} references", 1 / (6 if is_int8 else 3.3)),
    ]
    name = f"{'ViT-L/14 at 518' if options.large else 'ViT 12x384 at 336'}, {options.engine} {options.precision}"
    print(f"| {name} | seconds per image | against | seconds per image | ratio | target |")
    print("|---|---|---|---|---|---|")
    failed = False
    for what, against, most in ratios:
        if what in best and against in best:
            ratio = best[what] / best[against]
            failed |= ratio > most
            print(f"| {what} | {best[what]:.3f} | {against} | {best[against]:.3f} | {ratio:.2f} | {most:.2f} |")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
