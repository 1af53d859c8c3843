"""Ctrl-C that lets a command finish the images in progress."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Let Ctrl-C finish the images in progress: yields a function that returns whether it was pressed.

    A second Ctrl-C stops at once. A process started with Ctrl-C ignored (in the background of a script) ignores it.
    """
    pressed = threading.Event()

    def on_interrupt(_signal: int, _frame: FrameType | None) -> None:
        pressed.set()
        signal.signal(signal.SIGINT, before)

    is_main = threading.current_thread() is threading.main_thread()  # only this thread receives signals
    if not is_main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
