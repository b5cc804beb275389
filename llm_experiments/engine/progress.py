"""What a run shows while it goes on: what is computed, how much is done, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import NamedTuple

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from toytransformer.working import Bar


class Entry(NamedTuple):
    """A step as a person sees it: its kind, its address and what it is called."""

    kind: str
    address: str
    label: str


class Estimate:
    """Time left, from how long finished steps of the same kind took (of any kind where none is finished).

    took: the seconds a step took by its address, None if it is not finished.
    """

    def __init__(self, entries: Iterable[Entry], took: Callable[[str], float | None]):
        self._took = took
        self._open = {entry.address: entry.kind for entry in entries}
        self._seconds: dict[str, list[float]] = {}
        for address in list(self._open):
            if (seconds := took(address)) is not None:
                self._count(address, seconds)

    def close(self, address: str) -> None:
        """The step is done with; if it is finished, the seconds it took count."""
        if address in self._open:
            self._count(address, self._took(address))

    def _count(self, address: str, seconds: float | None) -> None:
        kind = self._open.pop(address)
        if seconds is not None:
            self._seconds.setdefault(kind, []).append(seconds)

    def left(self, running: float = 0.0) -> float | None:
        """Seconds left when the step now computed has run for `running`; None while nothing is known."""
        if not self._open:
            return 0.0
        if not self._seconds:
            return None
        average = fmean(second for seconds in self._seconds.values() for second in seconds)
        means = {kind: fmean(seconds) for kind, seconds in self._seconds.items()}
        return max(sum(means.get(kind, average) for kind in self._open.values()) - running, 0.0)


def duration(seconds: float | None) -> str:
    """Seconds in words: '45 s', '12 min', '3 h 20 min'; '?' for None."""
    if seconds is None:
        return "?"
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min"


class _TimeLeft(ProgressColumn):
    def __init__(self, left: Callable[[], float | None]):
        super().__init__()
        self._left = left

    def render(self, task: Task) -> Text:
        return Text(f"{duration(self._left())} left", style="progress.remaining")


class Display:
    """What a person sees of a run, on stderr: a bar on a terminal, elsewhere a line for each computed step.

    Used as a context manager. show: False for silence.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        took: Callable[[str], float | None],
        show: bool,
        console: Console | None,
    ):
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False, quiet=not show)
        self.total, self.done = len(entries), 0
        self.estimate = Estimate(entries, took)
        self._start: float | None = None
        self._waits = False
        columns = (
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            _TimeLeft(self._left),
            TextColumn("{task.description}", markup=False),
        )
        bar = show and self.console.is_terminal
        self._bar = Bar(*columns, console=self.console, transient=True, disable=not bar)
        self._task = self._bar.add_task("", total=self.total)
        self._lines = show and not bar

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def _left(self) -> float | None:
        return self.estimate.left(0.0 if self._start is None else time.perf_counter() - self._start)

    def log(self, text: str) -> None:
        self._bar.console.print(text)

    def begin(self, entry: Entry) -> None:
        self._start, self._waits = time.perf_counter(), False
        self._bar.update(self._task, description=entry.label)

    def passed(self, entry: Entry, failed: bool) -> None:
        self.done += 1
        self.estimate.close(entry.address)
        self._bar.update(self._task, completed=self.done)
        if self._lines and self._start is not None and not failed:
            took = duration(time.perf_counter() - self._start)
            left = duration(self.estimate.left())
            self.log(f"[{self.done}/{self.total}] {escape(entry.label)}: {took}; {left} left")
        self._start = None

    def waiting(self, entry: Entry) -> None:
        if not self._waits:
            self.log(f"waiting for {escape(entry.label)}, which another process computes")
            self._bar.update(self._task, description=f"another process: {entry.label}")
        self._waits = True
