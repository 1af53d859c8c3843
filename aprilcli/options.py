"""The options of each command: names, defaults and help, which the command line reads. Imports neither torch nor numpy.

A field's ``Annotated`` holds its typer option. A function beside it reads the text given on the command line.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from aprilcli.defaults import (
    FALSE_ALARM_RATE,
    LAYOUTS,
    LEARNING_RATE,
    MAX_PIXELS,
    MOSAIC_SHARE,
    MVTEC,
    PAPER,
    SHOTS,
    TINY,
    VISA,
)
from aprilcli.errors import OptionError


class Device(StrEnum):
    """Where the model runs; auto prefers a GPU."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(StrEnum):
    """Number format of the encoder; auto is fp16 with CUDA, otherwise fp32."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"
    int8 = "int8"


class Engine(StrEnum):
    """What runs the image tower."""

    torch = "torch"
    openvino = "openvino"


class Fusion(StrEnum):
    """How the distances of the stages are added up: as they are, or scaled to equal means over good images."""

    sum = "sum"
    balanced = "balanced"


class EvalFusion(StrEnum):
    """The same for `eval`; authors: image scores as in the paper's tables, which need all test images of an object."""

    sum = "sum"
    balanced = "balanced"
    authors = "authors"


class MapSize(StrEnum):
    """Size of the maps on disk."""

    source = "source"
    model = "model"


def _option(name: str, text: str, **settings: Any) -> Any:
    """Declare an option that the environment can also set, as APRILCLI_<OPTION>."""
    variable = "APRILCLI_" + name.lstrip("-").split("/")[0].replace("-", "_").upper()
    # Unreadable folders are reported by the workflows, in one line.
    return typer.Option(name, help=text, envvar=variable, show_envvar=False, readable=False, **settings)


def _argument(name: str, text: str) -> Any:
    return typer.Argument(metavar=name, help=text, readable=False)  # see _option


def parse_range(text: str) -> tuple[float, float]:
    """Read ``0,4095``. Raises OptionError."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not float("-inf") < low < high < float("inf"):
        raise OptionError(f"--range {text}: give two numbers, the smaller number first, such as 0,4095")
    return low, high


def parse_stages(text: str) -> tuple[int, ...]:
    """Read ``6,12,18,24``. Raises OptionError."""
    return _parse_integers("--stages", text, "6,12,18,24")


def parse_sizes(text: str) -> tuple[int, ...]:
    """Read ``256,384``. Raises OptionError."""
    sizes = _parse_integers("--image-size", text, "256,384")
    if min(sizes) < 1:
        raise OptionError(f"--image-size {text}: sizes start at 1")
    return sizes


def parse_shots(text: str) -> tuple[int, ...]:
    """Read ``0,1,2,4``. Raises OptionError."""
    return _parse_integers("--shots", text, "0,1,2,4")


def _parse_integers(option: str, text: str, example: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text}: give integers separated by commas, such as {example}") from None


def parse_names(text: str) -> tuple[str, ...]:
    """Read ``bolt,nut``."""
    return tuple(text.split(","))


def parse_number(option: str, example: float, text: str) -> float:
    """Read ``0.05``; for ``5%`` or ``0,05`` the error suggests 0.05, otherwise ``example``. Raises OptionError."""
    try:
        return float(text)
    except ValueError:
        raise OptionError(f"{option} {text}: give a decimal number, such as {_meant(text, example):g}") from None


def _meant(text: str, example: float) -> float:
    try:
        number = float(text.strip().removesuffix("%").replace(",", "."))
    except ValueError:
        return example
    return number / 100 if text.strip().endswith("%") else number


# Fields that several commands declare, with other defaults or beside other fields.
_MODELS = f"{TINY}, {PAPER}, an open_clip NAME[:TAG], or a model folder."
BankModel = Annotated[str | None, _option("--model", _MODELS, show_default=f"{TINY}, or the bank's")]
FixedModel = Annotated[str, _option("--model", _MODELS)]
Projector = Annotated[
    str | None,
    _option("--projector", f"{VISA}, {MVTEC}, a safetensors file, or an authors' .pth. Default: the model's own."),
]
BatchSize = Annotated[int, _option("--batch-size", "Images per encoder pass.", min=1)]
Overlays = Annotated[bool, _option("--overlays", "Write each image with its map drawn over it (overlays/).")]
Report = Annotated[bool, _option("--report", "Write a page to look through the results (report.html).")]
Workers = Annotated[int, _option("--workers", "Threads that read images and write maps.", min=1)]
Overwrite = Annotated[bool, _option("--overwrite", "Replace existing results.")]
Rate = Annotated[
    float | None,
    _option(
        "--false-alarm-rate",
        "Accepted share of good images called anomalous.",
        metavar="NUMBER",
        show_default=f"what the number of good images allows, at least {FALSE_ALARM_RATE}",
    ),
    partial(parse_number, "--false-alarm-rate", 0.05),
]
Tile = Annotated[
    int | None,
    _option(
        "--tile", "Also encode overlapping tiles of this side, in pixels of the image, to find small defects.", min=1
    ),
]
_ENGINE = "Library that runs the encoder; openvino is often faster on a CPU (pip install 'aprilcli[openvino]')."
_FUSION = "Distances of the stages: added up as in the paper (sum), or first scaled to equal means (balanced)."
_FUSION_DEFAULT = f"sum; balanced for {TINY}"
Seed = Annotated[int, _option("--seed", "Random seed.", min=0, max=2**63 - 1)]


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """What a command prints."""

    quiet: Annotated[bool, _option("--quiet", "Print results and errors only.")] = False
    verbose: Annotated[bool, _option("--verbose", "Print more details.")] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: BankModel = None
    image_size: Annotated[
        tuple[int, ...] | None,
        _option(
            "--image-size",
            f"Side of the model's input in pixels; {TINY}: a multiple of 32. Several, such as 256,384: results are "
            "averaged; `train` takes turns.",
            show_default="the model's own",
        ),
        parse_sizes,
    ] = None
    stages: Annotated[
        tuple[int, ...] | None,
        _option("--stages", f"Encoder stages to use, counted from 1, such as 6,12,18,24; {TINY}: 1 to 4."),
        parse_stages,
    ] = None
    device: Annotated[Device, _option("--device", "Device of the model.")] = Device.auto
    precision: Annotated[
        Precision, _option("--precision", "Number format of the encoder; int8 needs --engine openvino.")
    ] = Precision.auto


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """How images are read."""

    batch_size: BatchSize = 1
    workers: Workers = 2
    value_range: Annotated[
        tuple[float, float] | None,
        _option(
            "--range",
            "Values that mean black and white, for images of more than 8 bits, such as 0,4095.",
            metavar="LO,HI",
        ),
        parse_range,
    ] = None
    max_pixels: Annotated[int, _option("--max-pixels", "Largest accepted image, width x height.", min=1)] = MAX_PIXELS
    follow: Annotated[bool, _option("--follow", "Enter linked folders.")] = False


@dataclass(frozen=True, kw_only=True)
class PartOptions(ModelOptions, ReadOptions):
    """What `scan` and `enroll` share."""

    projector: Projector = None
    object_name: Annotated[
        str | None,
        _option("--object", "Name of the object in the prompts.", show_default="object, or the bank's"),
    ] = None
    banks: Annotated[Path, _option("--banks", "Folder of the parts' bank files.")] = Path("banks")
    tile: Tile = None
    engine: Annotated[Engine | None, _option("--engine", _ENGINE, show_default="torch, or the bank's")] = None


@dataclass(frozen=True, kw_only=True)
class ScanOptions(PartOptions):
    """Options of `scan`."""

    paths: Annotated[list[Path], _argument("FOLDER", "Folders of images, with subfolders, or images.")]
    out: Annotated[Path, _option("--out", "Output folder for scores.csv, maps/ and run.json.")] = Path("april-scan")
    part: Annotated[str | None, _option("--part", "Compare with this enrolled part (a name or a bank file).")] = None
    maps: Annotated[bool, _option("--maps/--no-maps", "Write a map of each image.")] = True
    map_size: Annotated[
        MapSize, _option("--map-size", "Size of the maps: that of the image or of the model's input.")
    ] = MapSize.source
    threshold: Annotated[
        float | None,
        _option("--threshold", "Call this score and higher scores anomalous.", metavar="NUMBER"),
        partial(parse_number, "--threshold", 0.5),
    ] = None
    false_alarm_rate: Rate = None
    pixel_threshold: Annotated[
        float | None,
        _option(
            "--pixel-threshold",
            "Mark places where the map reaches this value as regions.",
            metavar="NUMBER",
            show_default="from the part's good images",
        ),
        partial(parse_number, "--pixel-threshold", 0.5),
    ] = None
    min_area: Annotated[int, _option("--min-area", "Smallest region, in pixels of the image.", min=1)] = 1
    overlays: Overlays = False
    report: Report = False
    csv_safe: Annotated[
        bool, _option("--csv-safe", "Put ' before texts in CSV files that a spreadsheet would take for formulas.")
    ] = False
    resume: Annotated[bool, _option("--resume", "Continue an interrupted scan.")] = False
    overwrite: Overwrite = False
    allow_empty: Annotated[
        bool, _option("--allow-empty", "Write empty results for folders without images, instead of failing.")
    ] = False
    fail_on_anomaly: Annotated[
        bool,
        _option(
            "--fail-on-anomaly",
            "Exit with 4 (5 if files are unreadable, too) if any image is anomalous; needs --part or --threshold.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class EnrollOptions(PartOptions):
    """Options of `enroll`."""

    paths: Annotated[
        list[Path] | None,
        _argument("FOLDER", "Folders of good images of one part, or images: five to fifty, without defects."),
    ] = None
    part: Annotated[str, _option("--part", "Name of the part.")]
    append: Annotated[bool, _option("--append", "Add references to an enrolled part.")] = False
    calibrate: Annotated[
        Path | None,
        _option(
            "--calibrate",
            "Folder of further good images, for a guaranteed false-alarm rate. Without FOLDER: for an enrolled part.",
        ),
    ] = None
    strict: Annotated[bool, _option("--strict", "Refuse good images that differ from the others.")] = False
    coreset: Annotated[
        float | None,
        _option("--coreset", "Keep this share of the bank's rows, chosen to cover the rest.", metavar="NUMBER"),
        partial(parse_number, "--coreset", 0.1),
    ] = None
    fusion: Annotated[Fusion | None, _option("--fusion", _FUSION, show_default=f"{_FUSION_DEFAULT}, or the bank's")] = (
        None
    )
    rotations: Annotated[
        bool | None,
        _option(
            "--rotations/--no-rotations",
            "Also keep each reference turned by 90 degree steps and mirrored, for parts that lie in any direction.",
            show_default="off, or the bank's",
        ),
    ] = None
    seed: Seed = 0
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(ModelOptions, ReadOptions):
    """What `train` and `eval` share."""

    dataset: Annotated[
        Path, _argument("DATASET", "Labeled folder: MVTec AD, LOCO, AD 2, MPDD, BTAD, VisA, or your own.")
    ]
    layout: Annotated[
        str, _option("--layout", f"auto, {', '.join(LAYOUTS)}. Use mvtec for MPDD, folder for your own data.")
    ] = "auto"
    model: FixedModel = TINY
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DatasetOptions):
    """Options of `train`."""

    out: Annotated[Path, _option("--out", "Projector file to write (.safetensors).")]
    epochs: Annotated[int, _option("--epochs", "Passes over the images; the paper: 15 on VisA.", min=1)] = 3
    batch_size: BatchSize = 16
    learning_rate: Annotated[
        float, _option("--lr", "Learning rate of Adam.", metavar="NUMBER"), partial(parse_number, "--lr", LEARNING_RATE)
    ] = LEARNING_RATE
    mosaic: Annotated[
        float | None,
        _option(
            "--mosaic",
            f"Share of images composed of four in a 2x2 grid. Default, as in the paper: {MOSAIC_SHARE}; 0 on VisA.",
            metavar="NUMBER",
        ),
        partial(parse_number, "--mosaic", MOSAIC_SHARE),
    ] = None
    validation: Annotated[
        float,
        _option("--val", "Share of images for validation, to keep the best epoch.", metavar="NUMBER"),
        partial(parse_number, "--val", 0.1),
    ] = 0.0
    resume: Annotated[bool, _option("--resume", "Continue after the last complete epoch.")] = False

    @property
    def checkpoint(self) -> Path:
        """Where the state after each epoch is kept until the training is done."""
        return self.out.with_name(self.out.name + ".checkpoint")

    @property
    def features(self) -> Path:
        """The folder of the encoder's features; deleted when the training ends or stops."""
        return self.out.with_name(self.out.name + ".features")

    @property
    def report(self) -> Path:
        """Where the training is described."""
        return self.out.with_name(self.out.name + ".json")


@dataclass(frozen=True, kw_only=True)
class EvalOptions(DatasetOptions):
    """Options of `eval`. Without ``shots``: the paper's numbers of shots for which every object has enough images."""

    out: Annotated[Path, _option("--out", "Output folder for metrics, scores, maps and plots.")] = Path("april-eval")
    shots: Annotated[
        tuple[int, ...] | None,
        _option(
            "--shots",
            f"Numbers of references. Default: {','.join(map(str, SHOTS))}, as far as there are enough images.",
        ),
        parse_shots,
    ] = None
    seeds: Annotated[int, _option("--seeds", "Number of random draws of references.", min=1)] = 5
    fusion: Annotated[
        EvalFusion | None,
        _option(
            "--fusion",
            f"{_FUSION} authors: as sum, with image scores scaled over all test images as in the paper's tables.",
            show_default=_FUSION_DEFAULT,
        ),
    ] = None
    calibrate: Annotated[
        bool, _option("--calibrate", "Also measure verdicts, at a threshold from good images that are not tested.")
    ] = False
    false_alarm_rate: Rate = None
    maps: Annotated[
        bool, _option("--maps", "Write maps for MVTec's evaluators, of the most shots and the first seed.")
    ] = False
    report: Report = False
    plots: Annotated[bool, _option("--plots", "Draw ROC and PRO curves and score histograms.")] = False
    objects: Annotated[
        tuple[str, ...] | None, _option("--objects", "Only these objects, separated by commas."), parse_names
    ] = None
    projector: Projector = None
    tile: Tile = None
    engine: Annotated[Engine, _option("--engine", _ENGINE)] = Engine.torch
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `inspect`."""

    file: Annotated[Path, _argument("FILE", "A bank, a projector or a map of this tool.")]


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `report`."""

    results: Annotated[Path, _argument("OUT", "Output folder of a scan or an evaluation.")]
    images: Annotated[
        Path | None,
        _option(
            "--images", "Folder of the images, if they have been moved.", show_default="where they were when scanned"
        ),
    ] = None
    overlays: Overlays = False
    workers: Workers = 2


def describe(options: ModelOptions) -> dict[str, Any]:
    """Return the options for a JSON record; paths become text."""
    return {name: _json_ready(value) for name, value in asdict(options).items()}


def _json_ready(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_json_ready, value))
    return str(value) if isinstance(value, Path) else value
