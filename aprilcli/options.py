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
    APRIL_GAN,
    LAYOUTS,
    LEARNING_RATE,
    MAX_PIXELS,
    METHODS,
    MOSAIC_SHARE,
    MVTEC,
    PADIM,
    PAPER,
    PATCHCORE,
    SHOTS,
    SPADE,
    SUBSPACEAD,
    TINY,
    VISA,
    WINCLIP,
)
from aprilcli.errors import OptionError

EXPERT = "Expert options"  # their title in the help


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


class Method(StrEnum):
    """How references are used."""

    april_gan = APRIL_GAN
    spade = SPADE
    padim = PADIM
    patchcore = PATCHCORE
    winclip = WINCLIP
    subspacead = SUBSPACEAD


class MutualBy(StrEnum):
    """Which images score each other: all, or those of the same folder."""

    all = "all"
    folder = "folder"


class MapSize(StrEnum):
    """Size of the maps on disk."""

    source = "source"
    model = "model"


def _option(name: str, text: str, *, expert: bool = False, **settings: Any) -> Any:
    """Declare an option that the environment can also set, as APRILCLI_<OPTION>; ``expert``: below ``EXPERT``."""
    variable = "APRILCLI_" + name.lstrip("-").split("/")[0].replace("-", "_").upper()
    settings["rich_help_panel"] = EXPERT if expert else None
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


def parse_methods(text: str) -> tuple[str, ...]:
    """Read ``april-gan,winclip``, or ``all``. Raises OptionError."""
    names = METHODS if text == "all" else tuple(text.split(","))
    if unknown := [name for name in names if name not in METHODS]:
        raise OptionError(f"--method {','.join(unknown)}: give all, or methods among {', '.join(METHODS)}")
    return tuple(dict.fromkeys(names))


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
_MODELS = f"The neural network: {TINY} (included), {PAPER} (more accurate), an open_clip NAME[:TAG], or a folder."
BankModel = Annotated[str | None, _option("--model", _MODELS, metavar="NAME", show_default=f"{TINY}, or the part's")]
FixedModel = Annotated[str, _option("--model", _MODELS, metavar="NAME")]
Projector = Annotated[
    str | None,
    _option(
        "--projector",
        f"Trained layers that find defects: {VISA}, {MVTEC}, a .safetensors file, or an authors' .pth.",
        expert=True,
        metavar="NAME",
        show_default="the model's own",
    ),
]
BatchSize = Annotated[
    int, _option("--batch-size", "Images that the model looks at together.", expert=True, metavar="COUNT", min=1)
]
Coco = Annotated[
    bool, _option("--coco", "Also write the regions as coco.json, which annotation tools open.", expert=True)
]
Overlays = Annotated[bool, _option("--overlays", "Write each image with its map drawn over it (overlays/).")]
Report = Annotated[bool, _option("--report", "Write a page to look through the results (report.html).")]
Workers = Annotated[
    int, _option("--workers", "Threads that read images and write maps.", expert=True, metavar="COUNT", min=1)
]
Overwrite = Annotated[bool, _option("--overwrite", "Replace existing results.")]
Rate = Annotated[
    float | None,
    _option(
        "--false-alarm-rate",
        "Accepted share of good images that are called anomalous, such as 0.01.",
        metavar="NUMBER",
        show_default="the lowest of 0.01, 0.02, 0.05 and 0.1 that the number of good images allows",
    ),
    partial(parse_number, "--false-alarm-rate", 0.05),
]
Tile = Annotated[
    int | None,
    _option(
        "--tile",
        "To find small defects: also look at each image in overlapping squares of this many pixels.",
        metavar="PIXELS",
        min=1,
    ),
]
_ENGINE = "Software that runs the model; openvino is often faster without GPU (pip install 'aprilcli[openvino]')."
_FUSION = "How distances to references are added up: as in the paper (sum), or with equal weights (balanced)."
_FUSION_DEFAULT = f"sum; balanced for {TINY}"
_ENGINE_DEFAULT = "torch, or the part's"
Banks = Annotated[Path, _option("--banks", "Folder where enrolled parts are kept.", metavar="FOLDER")]
Seed = Annotated[
    int,
    _option(
        "--seed",
        "Random seed: the same number gives the same result.",
        expert=True,
        metavar="NUMBER",
        min=0,
        max=2**63 - 1,
    ),
]


@dataclass(frozen=True, kw_only=True)
class ConsoleOptions:
    """What a command prints."""

    quiet: Annotated[bool, _option("--quiet", "Print results and errors only.")] = False
    verbose: Annotated[bool, _option("--verbose", "Print more, each line with its time.")] = False


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how it runs."""

    model: BankModel = None
    image_size: Annotated[
        tuple[int, ...] | None,
        _option(
            "--image-size",
            f"Side in pixels that images are resized to; {TINY}: a multiple of 32. Several, such as 256,384: results "
            "are averaged.",
            expert=True,
            metavar="PIXELS",
            show_default="the model's own",
        ),
        parse_sizes,
    ] = None
    stages: Annotated[
        tuple[int, ...] | None,
        _option(
            "--stages",
            f"Layers of the model that are used, counted from 1, such as 6,12,18,24; {TINY}: 1 to 4.",
            expert=True,
            metavar="LIST",
            show_default="the model's own",
        ),
        parse_stages,
    ] = None
    device: Annotated[
        Device, _option("--device", "Where the model runs; auto uses a GPU if there is one.", expert=True)
    ] = Device.auto
    precision: Annotated[
        Precision,
        _option("--precision", "Number format that the model computes in; int8 needs --engine openvino.", expert=True),
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
            "Pixel values that mean black and white, for images of more than 8 bits, such as 0,4095.",
            expert=True,
            metavar="LO,HI",
        ),
        parse_range,
    ] = None
    max_pixels: Annotated[
        int,
        _option("--max-pixels", "Largest accepted image, width x height.", expert=True, metavar="PIXELS", min=1),
    ] = MAX_PIXELS
    follow: Annotated[bool, _option("--follow", "Enter linked folders.", expert=True)] = False


@dataclass(frozen=True, kw_only=True)
class PartOptions(ModelOptions, ReadOptions):
    """What `scan` and `enroll` share."""

    projector: Projector = None
    object_name: Annotated[
        str | None,
        _option(
            "--object",
            "Name of the product in English, such as metal nut.",
            metavar="NAME",
            show_default="object, or the part's",
        ),
    ] = None
    banks: Banks = Path("banks")
    tile: Tile = None
    engine: Annotated[Engine | None, _option("--engine", _ENGINE, expert=True, show_default=_ENGINE_DEFAULT)] = None


@dataclass(frozen=True, kw_only=True)
class ScanOptions(PartOptions):
    """Options of `scan`."""

    paths: Annotated[list[Path], _argument("FOLDER", "Folders of images, with subfolders, or images.")]
    out: Annotated[
        Path, _option("--out", "Folder for the results: scores.csv, maps/ and others.", metavar="FOLDER")
    ] = Path("april-scan")
    part: Annotated[
        str | None,
        _option("--part", "Compare with the good images of this enrolled part (its name or its file).", metavar="NAME"),
    ] = None
    mutual: Annotated[
        bool,
        _option(
            "--mutual",
            "Compare the images with each other: what few of them have is anomalous. Needs at least 8 images of one "
            "part, most of them good.",
        ),
    ] = False
    mutual_by: Annotated[
        MutualBy,
        _option("--mutual-by", "Which images --mutual compares: all, or those of each folder.", expert=True),
    ] = MutualBy.all
    maps: Annotated[
        bool, _option("--maps/--no-maps", "Write a map of each image, which shows where it is anomalous.")
    ] = True
    map_size: Annotated[
        MapSize, _option("--map-size", "Size of the maps: that of the image, or of the model's input.", expert=True)
    ] = MapSize.source
    threshold: Annotated[
        float | None,
        _option("--threshold", "Call images with this score or more anomalous.", metavar="NUMBER"),
        partial(parse_number, "--threshold", 0.5),
    ] = None
    false_alarm_rate: Rate = None
    pixel_threshold: Annotated[
        float | None,
        _option(
            "--pixel-threshold",
            "List places where the map has this value or more as regions.",
            metavar="NUMBER",
            show_default="from the part's good images",
        ),
        partial(parse_number, "--pixel-threshold", 0.5),
    ] = None
    min_area: Annotated[
        int, _option("--min-area", "Smallest region, in pixels of the image.", expert=True, metavar="PIXELS", min=1)
    ] = 1
    overlays: Overlays = False
    report: Report = False
    coco: Coco = False
    csv_safe: Annotated[
        bool,
        _option("--csv-safe", "Put ' before texts in CSV files that a spreadsheet takes for formulas.", expert=True),
    ] = False
    resume: Annotated[bool, _option("--resume", "Continue an interrupted scan.")] = False
    overwrite: Overwrite = False
    allow_empty: Annotated[
        bool,
        _option("--allow-empty", "Write empty results for folders without images, instead of failing.", expert=True),
    ] = False
    fail_on_anomaly: Annotated[
        bool,
        _option(
            "--fail-on-anomaly",
            "Exit with 4 if any image is anomalous or unrecognised (5 if files are unreadable, too); needs --part or "
            "--threshold.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class EnrollOptions(PartOptions):
    """Options of `enroll`."""

    paths: Annotated[
        list[Path] | None,
        _argument("FOLDER", "Folders of good images of one part, or images: five to fifty, without defects."),
    ] = None
    part: Annotated[str, _option("--part", "Name to give the part (the product), such as nut.", metavar="NAME")]
    append: Annotated[bool, _option("--append", "Add the images to an enrolled part.")] = False
    calibrate: Annotated[
        Path | None,
        _option(
            "--calibrate",
            "Further good images, which set the threshold. Alone, without references: for an enrolled part.",
            metavar="FOLDER",
        ),
    ] = None
    defects: Annotated[
        Path | None,
        _option(
            "--defects",
            "Images of known defects, eight or more: they choose the score that tells them best from good images. "
            "Needs --calibrate: half of its images choose, too, the others set the threshold.",
            metavar="FOLDER",
        ),
    ] = None
    labels: Annotated[
        Path | None,
        _option(
            "--labels",
            "Take only the images that this file labels good, such as labels.csv of a report.",
            metavar="FILE",
        ),
    ] = None
    strict: Annotated[
        bool, _option("--strict", "Refuse images that differ from the others, as one with a defect would.")
    ] = False
    coreset: Annotated[
        float | None,
        _option(
            "--coreset",
            "Keep only this share of what is remembered, such as 0.1, for speed; it is chosen to cover the rest.",
            expert=True,
            metavar="NUMBER",
        ),
        partial(parse_number, "--coreset", 0.1),
    ] = None
    fusion: Annotated[
        Fusion | None,
        _option("--fusion", _FUSION, expert=True, show_default=f"{_FUSION_DEFAULT}, or the part's"),
    ] = None
    rotations: Annotated[
        bool | None,
        _option(
            "--rotations/--no-rotations",
            "For parts that lie in any direction: also remember each image turned by 90 degree steps and mirrored.",
            show_default="off, or the part's",
        ),
    ] = None
    method: Annotated[
        Method | None,
        _option(
            "--method",
            "How images are compared with the references: the paper's method, or one that it is measured against.",
            expert=True,
            show_default=f"{APRIL_GAN}, or the part's",
        ),
    ] = None
    seed: Seed = 0
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class DatasetOptions(ModelOptions, ReadOptions):
    """What `train` and `eval` share."""

    dataset: Annotated[
        Path,
        _argument(
            "DATASET", "Folder of good and defective images: MVTec AD, LOCO, AD 2, MPDD, BTAD, VisA, or your own."
        ),
    ]
    layout: Annotated[
        str,
        _option(
            "--layout",
            f"How DATASET is organized: auto, {', '.join(LAYOUTS)}. Use mvtec for MPDD, folder for your own data.",
            metavar="NAME",
        ),
    ] = "auto"
    seed: Seed = 0

    @property
    def model_name(self) -> str:
        """The model, where it does not come from a bank."""
        return self.model or TINY


@dataclass(frozen=True, kw_only=True)
class TrainOptions(DatasetOptions):
    """Options of `train`."""

    out: Annotated[
        Path, _option("--out", "File for the result, which --projector takes (.safetensors).", metavar="FILE")
    ]
    model: FixedModel = TINY
    epochs: Annotated[
        int, _option("--epochs", "Passes over the images; the paper: 15 on VisA.", metavar="COUNT", min=1)
    ] = 3
    batch_size: BatchSize = 16
    learning_rate: Annotated[
        float,
        _option("--lr", "Learning rate (of the optimizer Adam).", expert=True, metavar="NUMBER"),
        partial(parse_number, "--lr", LEARNING_RATE),
    ] = LEARNING_RATE
    mosaic: Annotated[
        float | None,
        _option(
            "--mosaic",
            "Share of images that are put together from four, in a 2x2 grid.",
            expert=True,
            show_default=f"as in the paper: {MOSAIC_SHARE}; 0 on VisA",
            metavar="NUMBER",
        ),
        partial(parse_number, "--mosaic", MOSAIC_SHARE),
    ] = None
    validation: Annotated[
        float,
        _option("--val", "Share of images to hold out, which tell the best epoch; it is kept.", metavar="NUMBER"),
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

    out: Annotated[
        Path, _option("--out", "Folder for the results: metrics, scores, maps and plots.", metavar="FOLDER")
    ] = Path("april-eval")
    part: Annotated[
        str | None,
        _option("--part", "Measure this enrolled part and its verdicts (its name or its file).", metavar="NAME"),
    ] = None
    banks: Banks = Path("banks")
    labels: Annotated[
        Path | None,
        _option("--labels", "Take the labels from this file, such as labels.csv of a report.", metavar="FILE"),
    ] = None
    shots: Annotated[
        tuple[int, ...] | None,
        _option(
            "--shots",
            "Numbers of good images to compare with, such as 0,4.",
            metavar="LIST",
            show_default=f"{','.join(map(str, SHOTS))}, as far as there are enough images",
        ),
        parse_shots,
    ] = None
    seeds: Annotated[
        int,
        _option("--seeds", "How often these are drawn at random; the mean is shown.", metavar="COUNT", min=1),
    ] = 5
    methods: Annotated[
        tuple[str, ...] | None,
        _option(
            "--method",
            f"Methods to compare, separated by commas, or all: {', '.join(METHODS)}.",
            metavar="LIST",
            show_default=APRIL_GAN,
        ),
        parse_methods,
    ] = None
    mutual: Annotated[
        bool, _option("--mutual", "Also measure without references: an object's test images score each other (MuSc).")
    ] = False
    fusion: Annotated[
        EvalFusion | None,
        _option(
            "--fusion",
            f"{_FUSION} authors: for the paper's tables; scores depend on all test images.",
            expert=True,
            show_default=_FUSION_DEFAULT,
        ),
    ] = None
    calibrate: Annotated[
        bool, _option("--calibrate", "Also measure verdicts: false alarms, and the share of defects found.")
    ] = False
    false_alarm_rate: Rate = None
    maps: Annotated[bool, _option("--maps", "Write maps for MVTec's evaluators, of the most --shots.")] = False
    report: Report = False
    plots: Annotated[bool, _option("--plots", "Draw curves (ROC, PRO) and histograms of the scores.")] = False
    objects: Annotated[
        tuple[str, ...] | None,
        _option("--objects", "Only these products of DATASET, separated by commas.", metavar="LIST"),
        parse_names,
    ] = None
    projector: Projector = None
    tile: Tile = None
    engine: Annotated[Engine | None, _option("--engine", _ENGINE, expert=True, show_default=_ENGINE_DEFAULT)] = None
    overwrite: Overwrite = False

    @property
    def method_names(self) -> tuple[str, ...]:
        """The methods to measure, where they do not come from a bank."""
        return self.methods or (APRIL_GAN,)

    @property
    def is_calibrated(self) -> bool:
        """Whether verdicts are measured."""
        return self.calibrate or self.part is not None


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Options of `inspect`."""

    file: Annotated[Path, _argument("FILE", "A bank (from enroll), a projector (from train) or a map (from scan).")]
    sheet: Annotated[
        Path | None,
        _option(
            "--sheet",
            "Draw the bank's images on one sheet, with their scores: a JPEG or PNG file to write.",
            metavar="FILE",
        ),
    ] = None
    overwrite: Overwrite = False


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """Options of `report`."""

    results: Annotated[Path, _argument("OUT", "Output folder of a scan or an evaluation.")]
    images: Annotated[
        Path | None,
        _option(
            "--images",
            "Folder of the images, if they have been moved.",
            metavar="FOLDER",
            show_default="where they were when scanned",
        ),
    ] = None
    overlays: Overlays = False
    coco: Coco = False
    workers: Workers = 2


def describe(options: ModelOptions) -> dict[str, Any]:
    """Return the options for a JSON record; paths become text."""
    return {name: _json_ready(value) for name, value in asdict(options).items()}


def _json_ready(value: Any) -> Any:
    if isinstance(value, list):
        return list(map(_json_ready, value))
    return str(value) if isinstance(value, Path) else value
