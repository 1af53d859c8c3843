"""The command line: options to dataclasses, errors to exit codes. Commands import their workflow when they run."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from aprilcli import __version__
from aprilcli.errors import AprilError, OptionError
from aprilcli.text import printable

EXIT_UNREADABLE = 3
EXIT_ANOMALOUS = 4
EXIT_INTERRUPTED = 130
LONGEST_ERROR = 4000  # characters; a list of ten files fits
OUT_OF_MEMORY = ("out of memory", "allocate memory")  # how PyTorch says it on a GPU and on a CPU


app = typer.Typer(
    help="Find defects in product photos: no training, no references, no internet needed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command that ends with one line and an exit code for the package's own errors; bugs keep theirs."""

    @functools.wraps(function)
    def run(**options: Any) -> None:
        try:
            function(**options)
        except AprilError as error:
            line = printable(" ".join(str(error).split()))  # what files and folders are called may hold anything
            typer.echo(f"aprilcli: error: {line[:LONGEST_ERROR]}", err=True)
            raise typer.Exit(error.exit_code) from error
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            way_on = "give a smaller --batch-size or --image-size, or free some memory"
            typer.echo(f"aprilcli: error: not enough memory; {way_on}", err=True)
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            typer.echo("aprilcli: interrupted; what was written is whole; scan and train go on with --resume", err=True)
            raise typer.Exit(EXIT_INTERRUPTED) from None

    return app.command()(run)


class Device(StrEnum):
    """Where the model runs."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Precision(StrEnum):
    """What the encoder computes in; auto is fp16 on a GPU, fp32 elsewhere."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Fusion(StrEnum):
    """How an image score joins text score and map maximum; authors needs all test pictures at once."""

    sum = "sum"
    authors = "authors"


class MapSize(StrEnum):
    """The size of the maps on disk."""

    source = "source"
    model = "model"


def _option(name: str, text: str, **settings: Any) -> Any:
    """Declare an option that the environment can set too, as APRILCLI_<OPTION>."""
    variable = "APRILCLI_" + name.lstrip("-").split("/")[0].replace("-", "_").upper()
    # A folder that cannot be read is told in our own line, not as wrong usage.
    return typer.Option(name, help=text, envvar=variable, show_envvar=False, readable=False, **settings)


def _argument(text: str) -> Any:
    return typer.Argument(help=text, readable=False)  # see _option


MODELS = "tiny, paper, an open_clip NAME[:TAG], or a model folder."
Model = Annotated[str | None, _option("--model", MODELS, show_default="tiny, or the bank's")]
FixedModel = Annotated[str, _option("--model", MODELS)]
ProjectorOption = Annotated[
    str | None,
    _option("--projector", "visa, mvtec, a safetensors file or an authors' .pth; the model's own if not given."),
]
ImageSize = Annotated[
    int | None, _option("--image-size", "Side of the model's input in pixels; for tiny a multiple of 32.", min=1)
]
Stages = Annotated[str | None, _option("--stages", "Stages to use, from 1, such as 6,12,18,24; tiny has 1 to 4.")]
DeviceOption = Annotated[Device, _option("--device", "Where the model runs.")]
PrecisionOption = Annotated[Precision, _option("--precision", "What the encoder computes in.")]
BatchSize = Annotated[int, _option("--batch-size", "Pictures per encoder pass.", min=1)]
Workers = Annotated[int, _option("--workers", "Threads that read pictures, and write maps.", min=1)]
Quiet = Annotated[bool, _option("--quiet", "Results and errors only, no warnings.")]
Verbose = Annotated[bool, _option("--verbose", "More about what is done.")]
ObjectName = Annotated[
    str | None,
    _option("--object", "What the prompts call the thing in the pictures.", show_default="object, or the bank's"),
]
Overwrite = Annotated[bool, _option("--overwrite", "Replace what is there.")]
Banks = Annotated[Path, _option("--banks", "Folder of the parts' banks.")]
Seed = Annotated[int, _option("--seed", "Seed of all that is drawn by chance.", min=0, max=2**63 - 1)]


Range = Annotated[
    str | None,
    _option("--range", "Black and white of pictures with more than 8 bits, such as 0,4095.", metavar="LO,HI"),
]
MaxPixels = Annotated[int, _option("--max-pixels", "Largest picture that is decoded.", min=1)]
Follow = Annotated[bool, _option("--follow", "Enter linked folders.")]


def parse_range(text: str | None) -> tuple[float, float] | None:
    """Read ``0,4095``. Raises OptionError."""
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        low, high = 0.0, 0.0
    if not float("-inf") < low < high < float("inf"):
        raise OptionError(f"--range {text}: give two numbers, the smaller one first, such as 0,4095")
    return low, high


def parse_numbers(option: str, text: str | None, example: str) -> tuple[int, ...] | None:
    """Read whole numbers with commas, such as ``example``. Raises OptionError naming the option."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(f"{option} {text}: give whole numbers with commas, such as {example}") from None


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aprilcli {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say it.")] = False,
) -> None:
    pass


@_command
def scan(
    folder: Annotated[Path, _argument("Folder of pictures; folders inside it are scanned too.")],
    out: Annotated[Path, _option("--out", "Where scores.csv, maps/ and run.json go.")] = Path("april-scan"),
    model: Model = None,
    projector: ProjectorOption = None,
    object_name: ObjectName = None,
    part: Annotated[str | None, _option("--part", "Compare with this enrolled part (a name, or a bank file).")] = None,
    banks: Banks = Path("banks"),
    image_size: ImageSize = None,
    stages: Stages = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    batch_size: BatchSize = 1,
    workers: Workers = 2,
    maps: Annotated[bool, _option("--maps/--no-maps", "Write a heatmap for each picture.")] = True,
    map_size: Annotated[
        MapSize, _option("--map-size", "Heatmaps at the picture's size or at the model's.")
    ] = MapSize.source,
    threshold: Annotated[float | None, _option("--threshold", "Call this score and higher ones anomalous.")] = None,
    false_alarm_rate: Annotated[
        float, _option("--false-alarm-rate", "Share of good pictures that may be called anomalous (with a part).")
    ] = 0.01,
    value_range: Range = None,
    max_pixels: MaxPixels = 100_000_000,
    follow: Follow = False,
    resume: Annotated[bool, _option("--resume", "Go on with an interrupted scan.")] = False,
    overwrite: Overwrite = False,
    fail_on_anomaly: Annotated[
        bool, _option("--fail-on-anomaly", "Exit with 4 if any picture is anomalous; needs --part or --threshold.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Score every picture below FOLDER: how anomalous, and where."""
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.scan import ScanOptions, run_scan, summarise

    if fail_on_anomaly and part is None and threshold is None:
        raise OptionError("--fail-on-anomaly: nothing says which scores are anomalous; give --threshold or --part")
    console = Console(quiet, verbose)
    options = ScanOptions(
        folder=folder,
        out=out,
        model=model,
        projector=projector,
        object_name=object_name,
        part=part,
        banks=banks,
        image_size=image_size,
        stages=parse_numbers("--stages", stages, "6,12,18,24"),
        device=device.value,
        precision=precision.value,
        batch_size=batch_size,
        workers=workers,
        maps=maps,
        map_size=map_size.value,
        threshold=threshold,
        false_alarm_rate=false_alarm_rate,
        value_range=parse_range(value_range),
        max_pixels=max_pixels,
        follow=follow,
        resume=resume,
        overwrite=overwrite,
    )
    summary = run_scan(options, console)
    console.result(summarise(summary))
    if fail_on_anomaly and summary.anomalous:
        raise typer.Exit(EXIT_ANOMALOUS)
    if summary.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


@_command
def enroll(
    folder: Annotated[Path, _argument("Folder of good photos of one part: five to fifty, no defects.")],
    part: Annotated[str, _option("--part", "The part's name.")],
    banks: Banks = Path("banks"),
    model: Model = None,
    projector: ProjectorOption = None,
    object_name: ObjectName = None,
    image_size: ImageSize = None,
    stages: Stages = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    batch_size: BatchSize = 1,
    workers: Workers = 2,
    append: Annotated[bool, _option("--append", "Add photos to a part that is enrolled.")] = False,
    calibrate: Annotated[
        Path | None, _option("--calibrate", "Further good photos, to set the threshold with a guarantee.")
    ] = None,
    coreset: Annotated[
        float | None, _option("--coreset", "Keep only this share of the bank, the rows that cover the rest.")
    ] = None,
    seed: Seed = 0,
    value_range: Range = None,
    max_pixels: MaxPixels = 100_000_000,
    follow: Follow = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Remember good photos of a part, and learn from them what score is alarming."""
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.enroll import EnrollOptions, run_enroll, summarise

    options = EnrollOptions(
        folder=folder,
        part=part,
        banks=banks,
        model=model,
        projector=projector,
        object_name=object_name,
        image_size=image_size,
        stages=parse_numbers("--stages", stages, "6,12,18,24"),
        device=device.value,
        precision=precision.value,
        batch_size=batch_size,
        workers=workers,
        append=append,
        overwrite=overwrite,
        calibrate=calibrate,
        coreset=coreset,
        seed=seed,
        value_range=parse_range(value_range),
        max_pixels=max_pixels,
        follow=follow,
    )
    console = Console(quiet, verbose)
    console.result(summarise(run_enroll(options, console)))


@_command
def inspect(
    file: Annotated[Path, _argument("A bank, a projector or a heatmap of this tool.")],
) -> None:
    """Say what a bank, projector or map file holds, who made it and from what."""
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.inspect import describe

    Console().result(describe(file))


@_command
def train(
    dataset: Annotated[Path, _argument("Labelled pictures with masks of their anomalies.")],
    out: Annotated[Path, _option("--out", "The projector to write, a .safetensors file.")],
    layout: Annotated[str, _option("--layout", "auto, mvtec, visa, folder, loco, btad or ad2.")] = "auto",
    model: FixedModel = "tiny",
    image_size: ImageSize = None,
    stages: Stages = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    epochs: Annotated[int, _option("--epochs", "Passes over the pictures; the paper: 15 on VisA.", min=1)] = 3,
    batch_size: BatchSize = 16,
    learning_rate: Annotated[float, _option("--lr", "Learning rate of Adam.")] = 1e-3,
    mosaic: Annotated[
        float | None, _option("--mosaic", "Share of 2x2 composites; as in the paper 0.2 if not given, on VisA 0.")
    ] = None,
    validation: Annotated[float, _option("--val", "Share of pictures to validate on, keeping the best epoch.")] = 0.0,
    workers: Workers = 2,
    seed: Seed = 0,
    resume: Annotated[bool, _option("--resume", "Go on after the last whole epoch of a stopped training.")] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Train a projector on pictures whose anomalies are known; the model itself stays as it is."""
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.train import TrainOptions, run_train, summarise

    console = Console(quiet, verbose)
    options = TrainOptions(
        dataset=dataset,
        out=out,
        layout=layout,
        model=model,
        image_size=image_size,
        stages=parse_numbers("--stages", stages, "6,12,18,24"),
        device=device.value,
        precision=precision.value,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        mosaic=mosaic,
        validation=validation,
        workers=workers,
        seed=seed,
        resume=resume,
    )
    console.result(summarise(run_train(options, console)))


@_command
def eval(  # the name of the command; nothing here needs the built-in
    dataset: Annotated[Path, _argument("Labelled folder: MVTec AD, LOCO, AD 2, VisA, BTAD, or your own.")],
    out: Annotated[Path, _option("--out", "Where metrics.csv, metrics.json and scores.csv go.")] = Path("april-eval"),
    layout: Annotated[str, _option("--layout", "auto, mvtec, loco, btad, ad2, visa or folder.")] = "auto",
    shots: Annotated[
        str | None, _option("--shots", "Reference photos, such as 0,1,2,4 (the default where there are as many).")
    ] = None,
    seeds: Annotated[int, _option("--seeds", "How often references are drawn.", min=1)] = 5,
    fusion: Annotated[Fusion, _option("--fusion", "Image score: the paper's words, or its program.")] = Fusion.sum,
    maps: Annotated[bool, _option("--maps", "Write the maps of the most shots' first seed, for evaluators.")] = False,
    plots: Annotated[bool, _option("--plots", "Draw ROC and PRO curves and score histograms.")] = False,
    objects: Annotated[str | None, _option("--objects", "Only these, with commas.")] = None,
    model: FixedModel = "tiny",
    projector: ProjectorOption = None,
    image_size: ImageSize = None,
    stages: Stages = None,
    device: DeviceOption = Device.auto,
    precision: PrecisionOption = Precision.auto,
    batch_size: BatchSize = 1,
    workers: Workers = 2,
    seed: Seed = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Measure a model on a labelled folder, as the paper does."""
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.evaluate import EvalOptions, run_eval

    console = Console(quiet, verbose)
    options = EvalOptions(
        dataset=dataset,
        out=out,
        layout=layout,
        shots=parse_numbers("--shots", shots, "0,1,2,4"),
        seeds=seeds,
        fusion=fusion.value,
        maps=maps,
        plots=plots,
        objects=tuple(objects.split(",")) if objects is not None else None,
        model=model,
        projector=projector,
        image_size=image_size,
        stages=parse_numbers("--stages", stages, "6,12,18,24"),
        device=device.value,
        precision=precision.value,
        batch_size=batch_size,
        workers=workers,
        seed=seed,
        overwrite=overwrite,
    )
    summary = run_eval(options, console)
    console.result(summary.table)
    console.note(f"done in {summary.seconds:.1f} s; results: {out}")
    if summary.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def main() -> None:
    """Run the command line."""
    # A damaged picture is told in its own row or note; Pillow's warning would tell it again, in its own words.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    app()
