"""Memory and time of listing, decoding and scanning many tiny images; each size runs in a separate process.

The scan is complete, with a very small model and without maps.

Run as ``python tests/benchmarks/bench_walk.py [SMALL LARGE]``; the default is 1,000 and 200,000 files.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from aprilcli.io.images import read_image
from aprilcli.io.walk import find_images

LAYOUTS = {"one folder": 10**9, "folders of 500": 500}


def make(folder: Path, count: int, per_folder: int) -> None:
    """Fill a folder with images of 8×8 pixels."""
    stream = BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stream, "PPM")
    for index in range(count):
        batch = folder / f"batch{index // per_folder:06}"
        if index % per_folder == 0:
            batch.mkdir()
        (batch / f"image of part {index:07}.pgm").write_bytes(stream.getvalue())


def make_model(folder: Path) -> None:
    """Write a CLIP that takes hardly any time to run: 4 patches, 4 layers of width 32, random weights."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    vision = {"image_size": 32, "layers": 4, "width": 32, "head_width": 16, "patch_size": 16}
    text = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    folder.mkdir()
    save_file(open_clip.CLIP(**config).state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))


def peak_kib() -> int:
    """Return the peak resident memory of this process (Linux; rusage would include the parent's)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def scan(folder: Path) -> int:
    """Scan a folder and return how many images were scored."""
    from typer.testing import CliRunner  # not at the top, so that the other tasks do not load these

    from aprilcli.cli import app

    with tempfile.TemporaryDirectory() as base:
        model, out = Path(base, "model"), Path(base, "out")
        make_model(model)
        options = ["--model", str(model), "--stages", "1,2,3,4", "--device", "cpu", "--no-maps", "--quiet"]
        result = CliRunner().invoke(app, ["scan", str(folder), "--out", str(out), *options])
        assert result.exit_code == 0, result.output
        with (out / "scores.csv").open() as rows:
            return sum(1 for _ in rows) - 1


def walk(folder: Path, decode: bool) -> int:
    """Walk a folder, decode its images if requested, and return how many there are."""
    count, last = 0, ""
    for found in find_images(folder):
        assert last < found.relative
        count, last = count + 1, found.relative
        if decode:
            read_image(found.path)
    return count


def measure(folder: Path, task: str) -> None:
    """Run a task; print the number of files, seconds, peak memory in KiB and its increase since the imports."""
    before = peak_kib()
    began = time.perf_counter()
    count = scan(folder) if task == "scan" else walk(folder, decode=task == "decode")
    seconds = time.perf_counter() - began
    print(count, f"{seconds:.2f}", peak_kib(), peak_kib() - before)


def main(small: int, large: int) -> None:
    """Print a line per layout, task and size, and the ratio of the peak memory between the two sizes."""
    for layout, per_folder in LAYOUTS.items():
        with tempfile.TemporaryDirectory() as base:
            for task in ("list", "decode", "scan"):
                peaks = []
                for count in (small, large):
                    folder = Path(base) / str(count)
                    if not folder.exists():
                        folder.mkdir()
                        make(folder, count, per_folder)
                    command = [sys.executable, __file__, "--measure", str(folder), task]
                    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                    files, seconds, peak, grown = output
                    peaks.append(int(peak))
                    print(
                        f"{layout}, {task}: {files} files in {seconds} s, peak {peak} KiB, {grown} KiB beyond imports"
                    )
                print(f"{layout}, {task}: peak memory ratio {peaks[1] / peaks[0]:.3f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(Path(sys.argv[2]), sys.argv[3])
    else:
        main(*(map(int, sys.argv[1:]) if len(sys.argv) == 3 else (1_000, 200_000)))
