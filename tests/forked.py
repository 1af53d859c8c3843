"""Runs of the command line in processes of their own, forked from a server that has imported the package.

The import takes seconds; the server does it once. Imports little itself, as each of these processes imports it.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [f"aprilcli.workflows.{name}" for name in ("scan", "mutual_scan", "enroll", "train", "evaluate")]
)

Preparation = Callable[[], object]  # runs in the process before the command line; of a module that imports little


class ForkedProcess:
    """What tests use of ``subprocess.Popen``, of a process that runs the command line; its output is text."""

    def __init__(self, *arguments: object, prepare: Preparation = int, stdout: str = "", stderr: str = "") -> None:
        """Start it, in the environment and folder of this process. ``stdout``, ``stderr``: files to write to."""
        self._folder = tempfile.TemporaryDirectory()
        self._outputs = [Path(given or f"{self._folder.name}/{n}") for n, given in enumerate((stdout, stderr))]
        words = ["aprilcli", *map(str, arguments)]
        place = (dict(os.environ), str(Path.cwd()))
        self._process = SERVER.Process(target=_run, args=(words, *place, prepare, self._outputs))
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """The exit status, minus the signal's number if one ended it; None while it runs."""
        return self._process.exitcode

    poll = returncode.fget

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        assert self._process.pid is not None
        os.kill(self._process.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self._process.kill()

    def communicate(self, timeout: float = 60) -> tuple[str, str]:
        """Wait for its end; return what it has printed. Call it once."""
        self._process.join(timeout)
        assert self.returncode is not None, "the process does not end"
        out, err = (path.read_text(errors="surrogateescape") if path.is_file() else "" for path in self._outputs)
        self._folder.cleanup()
        return out, err

    def result(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end, and return how it ended."""
        out, err = self.communicate()
        return subprocess.CompletedProcess((), self.returncode or 0, out, err)


def _run(words: list[str], environment: dict[str, str], folder: str, prepare: Preparation, outputs: list[Path]) -> None:
    from aprilcli.cli import main

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = os.fdopen(descriptor, "w", encoding="utf-8", closefd=False)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)  # as Python does, so that it stays open when it is replaced
    # As in a new process: tests in the background would make it inherit an ignored Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = words
    prepare()
    main()


def limit_files(size: int) -> Preparation:
    """Let no file grow beyond ``size`` bytes, as on a full disk."""
    return partial(_limit_files, size)


def _limit_files(size: int) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def limit_memory(more: int) -> Preparation:
    """Let the process use only so many bytes more than at its start."""
    return partial(_limit_memory, more)


def _limit_memory(more: int) -> None:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, used + more))


def signal_at(number: signal.Signals, event: str, text: str, occurrence: int) -> Preparation:
    """Let the process send itself a signal at an exact moment of its work.

    The moment is the given occurrence of Python's audit event ``event`` ("open", "os.rename" …) whose arguments
    contain ``text``; the event comes before the action.
    """
    return partial(_signal_at, number, event, text, occurrence)


def _signal_at(number: signal.Signals, event: str, text: str, occurrence: int) -> None:
    def on_event(name: str, arguments: tuple[object, ...]) -> None:
        nonlocal occurrence
        if name == event and text in str(arguments):
            occurrence -= 1
            if occurrence == 0:
                os.kill(os.getpid(), number)

    sys.addaudithook(on_event)
