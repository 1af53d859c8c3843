"""What a person sees while a command works: notes and progress on stderr, results on stdout."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import rich.console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.progress import Task as ProgressTask
from rich.table import Table
from rich.text import Text

from aprilcli.io.atomic import output_errors
from aprilcli.text import printable

SPEED_PERIOD = 3600.0  # seconds that rate and time left are drawn from: a step of a large model takes minutes


class Console:
    """Writes notes and progress to stderr, results to stdout; ``quiet`` silences all but results and errors."""

    def __init__(self, quiet: bool = False, verbose: bool = False) -> None:
        """Colours and bars only where a terminal is; ``verbose`` adds details."""
        self.quiet = quiet
        self.verbose = verbose
        self._out = rich.console.Console(highlight=False, soft_wrap=True)
        self._err = rich.console.Console(stderr=True, highlight=False, soft_wrap=True)
        self._said: set[str] = set()

    @property
    def is_interactive(self) -> bool:
        """Whether progress may be drawn."""
        return self._err.is_terminal and not self.quiet

    def note(self, text: str) -> None:
        """Say something on stderr, on one line; where that is closed or full, the work goes on."""
        if not self.quiet:
            with suppress(OSError):
                self._err.print(Text(printable(text), style="dim"))

    def note_once(self, text: str) -> None:
        """Say something on stderr, the first time only."""
        if text not in self._said:
            self._said.add(text)
            self.note(text)

    def detail(self, text: str) -> None:
        """Say something on stderr if asked to be verbose."""
        if self.verbose:
            self.note(text)

    def result(self, content: str | Table) -> None:
        """Print a result on stdout; a string stands exactly as given. Raises OutputError where it cannot be written."""
        with output_errors(Path("standard output")):
            self._out.print(Text(content) if isinstance(content, str) else content)

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[..., None]]:
        """Draw a bar with rate and time left; yields the function that advances it, and renames it if given a name."""
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
            task = progress.add_task(what, total=total)
            yield lambda count=1, what=None: progress.update(task, advance=count, description=what)


class _RateColumn(TextColumn):
    """Pictures per second."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: ProgressTask) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f} images/s" if speed else "")
