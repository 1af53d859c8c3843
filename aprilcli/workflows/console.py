"""What a command prints: notes and progress on stderr, results on stdout."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.table import Table
from rich.text import Text

from aprilcli.text import printable

WIDEST = 10_000  # characters of a table's line, in any terminal
SPEED_PERIOD = 3600.0  # seconds that rate and remaining time are computed from: a step of a large model takes minutes


class Console:
    """Prints notes and progress on stderr, results on stdout; ``quiet`` leaves only results and errors.

    Warnings that the package's modules log are notes, too.
    """

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        """Use colors and bars only on a terminal; ``verbose`` adds details, and the time to each note."""
        self.quiet = quiet
        self.verbose = verbose
        # Explicit, so that FORCE_COLOR does not put colors and bars into a file.
        is_terminal = sys.stderr.isatty()
        self._err = rich.console.Console(stderr=True, highlight=False, soft_wrap=True, force_terminal=is_terminal)
        if not is_terminal or self._err.width < 1:  # with COLUMNS=0 nothing would be printed
            self._err.width = WIDEST
        self._printed: set[str] = set()
        logger = logging.getLogger("aprilcli")
        logger.handlers[:] = [_Notes(self)]
        logger.propagate = False  # libraries print what reaches the root logger

    @property
    def is_interactive(self) -> bool:
        """Whether progress bars are drawn."""
        return self._err.is_terminal and self._err.is_interactive and not self.quiet

    def note(self, text: str) -> None:
        """Print one line on stderr; it begins with the time if ``verbose``."""
        if not self.quiet:
            time = f"{datetime.now():%H:%M:%S} " if self.verbose else ""
            self._err.print(Text(time + printable(text), style="dim"))

    def note_once(self, text: str) -> None:
        """Print a note the first time only."""
        if text not in self._printed:
            self._printed.add(text)
            self.note(text)

    def detail(self, text: str) -> None:
        """Print a note if ``verbose``."""
        if self.verbose:
            self.note(text)

    def result(self, content: str | Table) -> None:
        """Print a result on stdout: a string as it is, a table at its full width, so that nothing is cut or wrapped."""
        out = rich.console.Console(
            highlight=False, soft_wrap=True, force_terminal=sys.stdout.isatty(), width=WIDEST, no_color=True
        )
        out.print(Text(content) if isinstance(content, str) else content)

    @contextmanager
    def progress(self, total: int, task: str) -> Iterator[Callable[..., None]]:
        """Draw a bar with rate and remaining time; yield ``advance(count=1, task=None)``, which may rename it."""
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _RateColumn(),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns,
            console=self._err,
            transient=True,
            disable=not self.is_interactive,
            speed_estimate_period=SPEED_PERIOD,
        ) as progress:
            bar = progress.add_task(task, total=total)
            yield lambda count=1, task=None: progress.update(bar, advance=count, description=task)


def table_text(table: Table) -> str:
    """Return a table as text, never cut or wrapped."""
    stream = io.StringIO()
    rich.console.Console(file=stream, width=WIDEST, color_system=None).print(table)
    lines = (line.rstrip() for line in stream.getvalue().splitlines())
    return "\n".join(line for line in lines if line)


class _Notes(logging.Handler):
    """Prints each warning of a logger once."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.WARNING)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.note_once(record.getMessage())


class _RateColumn(TextColumn):
    """Images per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: ProgressTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "")
