"""The command line: options become dataclasses, errors exit codes. Commands import their workflow when they run."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Annotated, Any, get_type_hints

import typer
from typer.core import TyperCommand

from aprilcli import __version__
from aprilcli.errors import AprilError
from aprilcli.options import (
    ConsoleOptions,
    EnrollOptions,
    EvalOptions,
    InspectOptions,
    ReportOptions,
    ScanOptions,
    TrainOptions,
)
from aprilcli.streams import make_tolerant
from aprilcli.text import printable

EXIT_UNREADABLE = 3
EXIT_ANOMALOUS = 4
EXIT_UNREADABLE_AND_ANOMALOUS = 5
EXIT_INTERRUPTED = 130
HELP_WIDTH = 100  # characters, in any terminal: typer cuts the descriptions of commands to a narrow one
LONGEST_ERROR = 4000  # characters; a list of ten files fits
OUT_OF_MEMORY = ("out of memory", "allocate memory")  # PyTorch's words on a GPU and on a CPU


app = typer.Typer(
    help="Find defects in images of products: no training, no references, no internet needed.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,  # plain text: no frames, no colors, and nothing cut in a narrow terminal
    context_settings={"help_option_names": ["-h", "--help"], "terminal_width": HELP_WIDTH},
)


class _GroupedCommand(TyperCommand):
    """A command whose help lists its everyday options first, then each ``rich_help_panel`` below its title."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write a section of plain text for each group."""
        groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            record = parameter.get_help_record(ctx)
            if record is not None:
                if kind == "Arguments":
                    record = (str(parameter.metavar), record[1])  # without the type, which is Python's
                groups.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        for title, records in groups.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Register a command; each of the function's parameters is a dataclass of options.

    The package's own errors end it with one line and their exit code; other exceptions are bugs and stay as they are.
    """
    classes = get_type_hints(function)
    del classes["return"]

    def run(**values: Any) -> None:
        try:
            function(**{name: _collect(options_class, values) for name, options_class in classes.items()})
        except AprilError as error:
            line = printable(" ".join(str(error).split()))  # names of files and folders may contain any character
            _print_error(f"error: {line[:LONGEST_ERROR]}")
            raise typer.Exit(error.exit_code) from error
        except (RuntimeError, MemoryError) as error:
            if isinstance(error, RuntimeError) and not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            advice = "use a smaller --batch-size or --image-size, or free some memory"
            _print_error(f"error: not enough memory; {advice}")
            raise typer.Exit(1) from error
        except KeyboardInterrupt:
            advice = "Output so far is complete; continue scan or train with --resume."
            _print_error(f"interrupted. {advice}")
            raise typer.Exit(EXIT_INTERRUPTED) from None

    parameters = [parameter for options_class in classes.values() for parameter in _parameters(options_class)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer reads
    return app.command(function.__name__.rstrip("_"), cls=_GroupedCommand, help=function.__doc__)(run)


def _print_error(text: str) -> None:
    print(f"aprilcli: {text}", file=sys.stderr)  # not typer.echo, which ignores an ASCII encoding


def _parameters(options_class: type) -> Iterator[inspect.Parameter]:
    """Return a dataclass's options for typer, those of the class itself before those of its bases."""
    hints = get_type_hints(options_class, include_extras=True)
    defaults = {field.name: field.default for field in fields(options_class)}
    for name in dict.fromkeys(name for base in options_class.__mro__ for name in inspect.get_annotations(base)):
        option, *parse = hints[name].__metadata__
        yield inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if defaults[name] is MISSING else defaults[name],
            annotation=Annotated[str | None, option] if parse else hints[name],
        )


def _collect(options_class: type, values: dict[str, Any]) -> Any:
    """Make the dataclass of the values that belong to it. Raises OptionError for text that cannot be parsed."""
    hints = get_type_hints(options_class, include_extras=True)
    chosen = {field.name: values[field.name] for field in fields(options_class)}
    for name, value in chosen.items():
        _, *parse = hints[name].__metadata__
        if parse and value is not None:
            chosen[name] = parse[0](value)
    return options_class(**chosen)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"aprilcli {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


@_command
def scan(options: ScanOptions, printing: ConsoleOptions) -> None:
    """Score every image in FOLDER: how anomalous it is, and where.

    The higher the score, the more likely the image shows a defect. A map of each image shows where. No preparation is
    needed; to compare with good images of your product, and to get verdicts, enroll them first.
    """
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.scan_checks import check

    console = Console(printing.quiet, printing.verbose)
    total = check(options, console)
    from aprilcli.workflows.mutual_scan import run_mutual_scan  # imports torch
    from aprilcli.workflows.scan import run_scan
    from aprilcli.workflows.scan_summary import summarize

    run = run_mutual_scan if options.mutual and total else run_scan
    summary = run(options, total, console)
    if options.overlays or options.coco or options.report:
        from aprilcli.workflows.report import write_for_scan
        from aprilcli.workflows.scan_results import ScanResults

        wanted = {"overlays": options.overlays, "coco": options.coco, "report": options.report}
        write_for_scan(ScanResults.open(options.out), console, options.workers, **wanted)
    console.result(summarize(summary))
    tally = summary.tally
    is_anomalous = options.fail_on_anomaly and tally.anomalous + tally.unrecognised > 0
    raise typer.Exit(_exit_code(tally.unreadable > 0, is_anomalous))


def _exit_code(unreadable: bool, anomalous: bool) -> int:
    if unreadable and anomalous:
        return EXIT_UNREADABLE_AND_ANOMALOUS
    return EXIT_ANOMALOUS if anomalous else EXIT_UNREADABLE if unreadable else 0


@_command
def enroll(options: EnrollOptions, printing: ConsoleOptions) -> None:
    """Remember good images of a part (a product), and derive a threshold from them.

    What is remembered of them is written to one file, the part's bank. `scan --part` then compares images with it, and
    calls those above the threshold anomalous.
    """
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.enroll_checks import check

    console = Console(printing.quiet, printing.verbose)
    found = check(options, console)
    from aprilcli.workflows.enroll import run_enroll, summarize  # imports torch

    console.result(summarize(run_enroll(options, found, console)))


@_command
def report(options: ReportOptions, printing: ConsoleOptions) -> None:
    """Write a page (report.html) to look through the results of a scan or an evaluation."""
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.report import run_report

    console = Console(printing.quiet, printing.verbose)
    console.result(run_report(options, console))


@_command
def inspect_(options: InspectOptions) -> None:
    """Show what a bank, projector or map file contains, and how it was made.

    A bank holds what `enroll` remembers of a part, a projector what `train` has learned, and a map where `scan` found
    an image anomalous.
    """
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.inspect import run_inspect

    console = Console()
    console.result(run_inspect(options))
    if options.sheet is not None:
        console.note(f"contact sheet: {options.sheet}")


@_command
def train(options: TrainOptions, printing: ConsoleOptions) -> None:
    """Train a projector on images with known defects; the model itself stays as it is.

    The projector is what tells a model how defects look; the models tiny and paper have one. Train one for another
    model, or for your own kind of defects.
    """
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.train_checks import check

    console = Console(printing.quiet, printing.verbose)
    dataset = check(options)
    from aprilcli.workflows.train import run_train, summarize  # imports torch

    console.result(summarize(run_train(options, dataset, console)))


@_command
def eval_(options: EvalOptions, printing: ConsoleOptions) -> None:
    """Measure how well defects are found, on images known to be good or defective.

    DATASET holds good and defective images of one or more products, and optionally masks, which mark the defects.
    """
    from aprilcli.workflows.console import Console
    from aprilcli.workflows.eval_checks import check

    console = Console(printing.quiet, printing.verbose)
    dataset = check(options)
    from aprilcli.workflows.evaluate import run_eval  # imports torch

    summary = run_eval(options, dataset, console)
    console.result(summary.table)
    console.note(f"done in {summary.seconds:.1f} s; results: {options.out}")
    if summary.unreadable:
        raise typer.Exit(EXIT_UNREADABLE)


def main() -> None:
    """Run the command line. Exits with 1 instead of 0 if standard output could not be written."""
    output = make_tolerant()
    # Damaged images have their row or note; Pillow's warning would repeat it.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        app()
    except SystemExit as ended:
        sys.stdout.flush()
        if ended.code == EXIT_INTERRUPTED and threading.active_count() > 1:
            sys.stderr.flush()
            os._exit(EXIT_INTERRUPTED)  # a thread is still encoding; Python would abort when it ends that thread
        if output.failure is None or isinstance(output.failure, BrokenPipeError):  # `head`, for example, has enough
            raise
        reason = f"cannot be written ({output.failure.strerror})"
        _print_error(f"error: standard output: {reason}; only this text is missing, files are complete")
        raise SystemExit(ended.code or 1) from None
