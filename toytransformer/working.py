"""Long work on a command line: how long it will take is said before, and Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

Result = TypeVar("Result")

#: Seconds beyond which the time is said before the work begins.
LONG = 5.0
#: How often the main thread moves the bar, in seconds.
TICK = 0.1


def working(work: Callable[[], Result], title: str, seconds: float, said: str) -> Result:
    """What `work` returns or raises, done in a thread of its own while a bar moves, on a terminal.

    seconds: how long it should take, in words `said`; beyond LONG seconds this is printed before. Ctrl-C ends
    the process as the system does, without Python: LAPACK as SciPy calls it lets no other Python run, no
    handler of a signal either, and one such call may last a minute. The work holds nothing but memory.
    """
    result: list[Result] = []
    errors: list[BaseException] = []

    def call() -> None:
        try:
            result.append(work())
        except BaseException as error:
            errors.append(error)

    console = Console(stderr=True)
    if seconds >= LONG:
        print(f"{title}: {said}; Ctrl-C ends it", file=sys.stderr, flush=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    thread = threading.Thread(target=call, daemon=True)
    handler = signal.getsignal(signal.SIGINT)
    if handler is signal.default_int_handler:  # a job in the background ignores Ctrl-C: it goes on doing so
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            console.show_cursor(True)  # the bar hides it, and nobody would bring it back after Ctrl-C
            bar = progress.add_task(title, total=max(seconds, LONG))
            begin = time.monotonic()
            thread.start()
            while thread.is_alive():
                thread.join(TICK)
                progress.update(bar, completed=min(time.monotonic() - begin, 0.99 * max(seconds, LONG)))
    finally:
        signal.signal(signal.SIGINT, handler)
    if errors:
        raise errors[0]
    return result[0]
