"""What several test modules use: the golden cases, drawn images and data sets, runs of the tool, and kills."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import ForkedProcess, signal_at
from PIL import Image
from typer.testing import CliRunner, Result

from aprilcli.cli import app
from aprilcli.core import training
from aprilcli.core.backbone import Backbone, TorchImageEncoder
from aprilcli.core.detector import Detector, ModelInput
from aprilcli.core.encoder import ImageEncoder
from aprilcli.core.memory_bank import MemoryBank
from aprilcli.core.projector import Projector
from aprilcli.core.prompts import encode_prompts
from aprilcli.io.images import read_image, to_pixels
from aprilcli.types import ImageFeatures

GOLDEN = Path(__file__).parent / "golden"
QUERIES = ("query0", "query1", "query2")
EVAL_SETTINGS = ("--shots", "0,1,2", "--seeds", "2")
SCANNED = 12  # images of `images` in workflows/conftest.py, without the unreadable one
STEPS_PER_EPOCH = 3  # of `run_train` on `draw_spotted_object`: ten images in batches of four


@dataclass(frozen=True)
class GoldenCase:
    """A tiny CLIP in open_clip's local-dir form with what the authors' program computed on it."""

    folder: Path
    image_size: int
    stages: tuple[int, ...]
    numbers: dict[str, torch.Tensor]
    backbone: Backbone
    projector: Projector

    @property
    def encoder(self) -> TorchImageEncoder:
        """The image encoder alone."""
        return self.backbone.encoder

    def detector(
        self, projector: Projector | None = None, bank: MemoryBank | None = None, object_name: str = "object"
    ) -> Detector:
        """Make a detector of this model."""
        return Detector(self.encoder, encode_prompts(self.backbone.text, object_name), projector, bank, object_name)

    def pixels(self, name: str) -> torch.Tensor:
        """Prepare a golden image as the tool does: [1, 3, S, S]."""
        source = read_image(GOLDEN / "images" / f"{name}.png")
        spec = self.backbone.spec
        return torch.from_numpy(to_pixels(source, spec.image_size, spec.mean, spec.std))[None]

    @property
    def options(self) -> list[str]:
        """The options that select this case's model."""
        stages = ",".join(map(str, self.stages))
        return ["--model", str(self.folder), "--image-size", str(self.image_size), "--stages", stages]


def inputs(pixels: torch.Tensor) -> list[ModelInput]:
    """Turn prepared images [B, 3, S, S] into the input of a detector of one size."""
    return [ModelInput((image.numpy(),)) for image in pixels]


# Images and data sets


def save_image(path: Path, image: Image.Image) -> Path:
    """Save an image; its folder is made if necessary."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def draw_image(path: Path, seed: int = 0, size_wh: tuple[int, int] = (60, 40)) -> Path:
    """Save an image of noise, a different one for each seed."""
    noise = np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), dtype=np.uint8)
    return save_image(path, Image.fromarray(noise))


def draw_images(folder: Path, count: int, first_seed: int = 0) -> Path:
    """Save images of noise, named by their seeds; return the folder."""
    for seed in range(first_seed, first_seed + count):
        draw_image(folder / f"{seed:03}.png", seed)
    return folder


def draw_mask(path: Path, box: tuple[int, int, int, int] = (5, 5, 30, 25), size_wh: tuple[int, int] = (60, 40)) -> None:
    """Save a mask in which the box (left, top, right, bottom) is anomalous."""
    mask = Image.new("L", size_wh)
    mask.paste(255, box)
    save_image(path, mask)


def draw_object(folder: Path, seed: int, train: int = 5, masks: bool = True) -> Path:
    """Draw an object in MVTec AD's layout: images of noise; the anomalous ones have a red square."""
    for number in range(train):
        draw_image(folder / "train" / "good" / f"{number:03}.png", seed + number)
    for number in range(3):
        draw_image(folder / "test" / "good" / f"{number:03}.png", seed + 20 + number)
        anomalous = draw_image(folder / "test" / "scratch" / f"{number:03}.png", seed + 40 + number)
        box = (5 + 6 * number, 5, 30 + 6 * number, 25)
        with Image.open(anomalous) as image:
            image.paste((250, 10, 10), box)
            image.save(anomalous)
        if masks:
            draw_mask(folder / "ground_truth" / "scratch" / f"{number:03}_mask.png", box)
    return folder


def draw_spot(root: Path, name: str, kind: str, seed: int) -> None:
    """Draw a gray image of an object with a blue patch; if it is not good, with a red spot, too, and its mask."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(90, 130, (30, 40, 3), dtype=np.uint8)
    y, x = rng.integers(0, 18), rng.integers(0, 26)
    pixels[y : y + 12, x : x + 14] = (20, 30, 250)
    if kind != "good":
        y, x = rng.integers(0, 18), rng.integers(0, 26)
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[y : y + 12, x : x + 14] = 255
        pixels[mask > 0] = (250, 20, 30)
        save_image(root / name / "ground_truth" / kind / f"{seed:03}_mask.png", Image.fromarray(mask))
    save_image(root / name / "test" / kind / f"{seed:03}.png", Image.fromarray(pixels))


def draw_spotted_object(root: Path) -> Path:
    """Draw four good and six spotted images of one object in MVTec AD's layout; return the root."""
    for seed in range(10):
        draw_spot(root, "steel_part", "good" if seed < 4 else "spot", seed)
    return root


def make_gray(folder: Path, white: int = 255) -> Path:
    """Replace the images in a folder, except masks, by their red channel; in 16 bits if ``white`` needs it."""
    for path in folder.rglob("*.png"):
        if "ground_truth" not in path.parts:
            with Image.open(path) as image:
                red = np.asarray(image)[..., 0] * (white / 255)
            Image.fromarray(red.round().astype(np.uint8 if white < 256 else np.uint16)).save(path)
    return folder


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """Change the model configuration of a model folder; return its file."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    change(config["model_cfg"])
    path.write_text(json.dumps(config))
    return path


# Runs within this process


def run(*arguments: object) -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app, list(map(str, arguments)))


def run_scan(*arguments: object) -> Result:
    """Run `scan` on the CPU."""
    return run("scan", *arguments, "--device", "cpu")


def run_eval(dataset: Path, out: Path, *arguments: object) -> Result:
    """Run `eval` on the CPU."""
    return run("eval", dataset, "--out", out, *arguments, "--device", "cpu")


def run_train(dataset: Path, out: Path, model: list[str], *arguments: object) -> Result:
    """Run `train` on the CPU in batches of four."""
    return run("train", dataset, "--out", out, *model, "--batch-size", 4, *arguments, "--device", "cpu")


def error_line(result: Result) -> str:
    """Return the one line that an error is: no traceback, nothing else on stderr."""
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("aprilcli: error: ")
    assert isinstance(result.exception, SystemExit)
    return lines[0]


def read_csv(path: Path) -> list[dict[str, str]]:
    """Read a CSV file's rows."""
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as stream:
        return list(csv.DictReader(stream))


def read_rows(out: Path) -> list[dict[str, str]]:
    """Read the rows of the scores.csv in a folder of results."""
    return read_csv(out / "scores.csv")


def read_rows_by_path(out: Path) -> dict[str, dict[str, str]]:
    """Read the rows of a scan's scores.csv, by path."""
    return {row["path"]: row for row in read_rows(out)}


def read_record(out: Path) -> dict[str, Any]:
    """Read the metrics.json of an evaluation."""
    return dict(json.loads((out / "metrics.json").read_text()))


def read_report(out: Path) -> dict[str, Any]:
    """Read the JSON file beside a trained projector."""
    return dict(json.loads(out.with_name(out.name + ".json").read_text()))


def before_each_step(monkeypatch: pytest.MonkeyPatch, action: Callable[[int], None]) -> None:
    """Call ``action`` with the step's number, from 1, before each training step."""
    real, count = training.ProjectorTrainer.step, 0

    def step(self: training.ProjectorTrainer, batch: training.Batch) -> float:
        nonlocal count
        count += 1
        action(count)
        return real(self, batch)

    monkeypatch.setattr(training.ProjectorTrainer, "step", step)


def stop_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Press Ctrl-C in the training step of that number, from 1."""

    def stop(count: int) -> None:
        if count == number:
            raise KeyboardInterrupt

    before_each_step(monkeypatch, stop)


def stop_in_second_epoch(parts: Path, out: Path, model: list[str], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stop a training of two epochs after its first; return its checkpoint."""
    with monkeypatch.context() as patch:
        stop_in_step(patch, STEPS_PER_EPOCH + 1)
        assert run_train(parts, out, model, "--epochs", 2).exit_code == 130
    return out.with_name(out.name + ".checkpoint")


# Runs in processes of their own, which are interrupted or killed


def happens(condition: Callable[[], bool], process: ForkedProcess, timeout: float = 60) -> bool:
    """Wait until the condition holds, or the process has ended; return whether it held. Fails after ``timeout`` s."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            return condition()
        assert time.monotonic() < deadline, "the process neither ended nor made progress"
        time.sleep(0.001)
    return True


def run_and_signal(
    number: signal.Signals, event: str, text: str, *arguments: object, occurrence: int = 1
) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process that sends itself a signal at an exact moment of its work (``signal_at``)."""
    return ForkedProcess(*arguments, prepare=signal_at(number, event, text, occurrence)).result()


class CountingEncoder:
    """An ``ImageEncoder`` that counts the images another one encodes."""

    def __init__(self, encoder: ImageEncoder) -> None:
        self.spec, self.grids = encoder.spec, encoder.grids
        self.device, self.precision = encoder.device, encoder.precision
        self.engine, self.quantization = encoder.engine, encoder.quantization
        self.has_windows = encoder.has_windows
        self.count = 0
        self._encoder = encoder

    def encode(self, pixels: np.ndarray, *, windows: bool = False) -> ImageFeatures:
        self.count += len(pixels)
        return self._encoder.encode(pixels)


# Scans that are interrupted and resumed; fixtures of theirs are in workflows/conftest.py


def scan_into(arguments: list[str], out: Path, *more: str) -> Result:
    """Run a scan whose command line is complete except for ``--out``."""
    return run(*arguments, "--out", out, *more)


def start_scan(arguments: list[str], out: Path, *more: str) -> ForkedProcess:
    """Start such a scan in a process of its own."""
    return ForkedProcess(*arguments, "--out", out, *more)


def contents_of_scan(out: Path) -> dict[str, bytes]:
    """Return the bytes that a resumed scan must reproduce: scores.csv, regions.csv and every map."""
    maps = {path.relative_to(out).as_posix(): path.read_bytes() for path in (out / "maps").rglob("*") if path.is_file()}
    tables = [out / name for name in ("scores.csv", "regions.csv")]
    return maps | {path.name: path.read_bytes() for path in tables if path.exists()}


def contents_of_new_scan(arguments: list[str], tmp_path: Path) -> dict[str, bytes]:
    """Scan into a new folder, with an unreadable image among the images."""
    assert scan_into(arguments, tmp_path / "complete").exit_code == 3
    return contents_of_scan(tmp_path / "complete")


def count_lines(out: Path) -> int:
    """Return the number of lines of scores.csv, the header included."""
    return (out / "scores.csv").read_bytes().count(b"\r\n") if (out / "scores.csv").exists() else 0


def wait_for_rows(out: Path, count: int, process: ForkedProcess) -> None:
    """Wait until scores.csv has more than ``count`` lines, the header included; fail if the scan ends before."""
    assert happens(lambda: count_lines(out) > count, process), process.communicate()
