"""Long work on a command line: how long it will take is said before, and Ctrl-C ends it at once."""

from __future__ import annotations

import os
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
#: Exit status after Ctrl-C.
INTERRUPTED = 130
#: How often the main thread looks for Ctrl-C and moves the bar, in seconds.
TICK = 0.1


def working(work: Callable[[], Result], title: str, seconds: float, said: str) -> Result:
    """What `work` returns or raises, done in a thread of its own.

    seconds: how long it should take, in words `said`; beyond LONG seconds this is printed before. A bar shows
    where stderr is a terminal. A thread, because Python hears of Ctrl-C between two of its own steps only,
    and one step here may be a minute of linear algebra; the main thread has none of these.
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
    try:
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            bar = progress.add_task(title, total=max(seconds, LONG))
            begin = time.monotonic()
            thread.start()
            while thread.is_alive():
                thread.join(TICK)
                progress.update(bar, completed=min(time.monotonic() - begin, 0.99 * max(seconds, LONG)))
    except KeyboardInterrupt:
        sys.stderr.flush()
        os._exit(INTERRUPTED)  # a regular end would wait for the thread; it holds nothing but memory
    if errors:
        raise errors[0]
    return result[0]
