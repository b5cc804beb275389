"""Long work on a command line: how long it will take is said before, and Ctrl-C ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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

    seconds: how long it should take, in words `said`; beyond LONG seconds this is printed before. After
    interrupts.end_at_once(), Ctrl-C ends it too where LAPACK, as SciPy calls it, lets no other Python run for
    a minute, no handler of a signal either.
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
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(title, total=max(seconds, LONG))
        begin = time.monotonic()
        thread.start()
        while thread.is_alive():
            thread.join(TICK)
            progress.update(bar, completed=min(time.monotonic() - begin, 0.99 * max(seconds, LONG)))
    if errors:
        raise errors[0]
    return result[0]


class Bar(Progress):
    """Rich's bar with the cursor shown: nobody would bring it back after Ctrl-C."""

    def start(self) -> None:
        super().start()
        if not self.disable:
            self.console.show_cursor(True)


@contextmanager
def ending(last_words: Callable[[], str]) -> Iterator[None]:
    """Until the block ends, SIGINT and SIGTERM end the process at once, with a last line on stderr.

    The status is 128 + the signal's number. No exception is raised in the block: libraries that are imported
    there could turn it into another, or go on without it. What is ignored (a job in the background) goes on
    being so. Elsewhere than in the main thread: no change.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = os.pipe()
    os.set_blocking(write, False)
    signals = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]

    def watch() -> None:
        while number := os.read(read, 1):
            if number[0] in signals:
                over = "\r\x1b[2K" if sys.stderr.isatty() else ""  # a bar
                print(f"{over}{last_words()}", file=sys.stderr, flush=True)
                os._exit(128 + number[0])
        os.close(read)

    previous = signal.set_wakeup_fd(write, warn_on_full_buffer=False)  # written to in C, by any signal
    handlers = {number: signal.signal(number, lambda *_: None) for number in signals}
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(previous)
        os.close(write)
