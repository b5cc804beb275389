"""What a run shows while it goes on: what is computed, how much is done, and the time left."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from llm_experiments.engine.sealing import StoreError
from llm_experiments.engine.store import Store

if TYPE_CHECKING:
    from llm_experiments.engine import local


class Estimate:
    """Time left, from how long finished cells of the same kind took (of any kind where none is finished)."""

    def __init__(self, cells: Iterable[local.Cell], store: Store):
        self.open = {cell.address: cell.kind for cell in cells}
        self.seconds: dict[str, list[float]] = {}
        for name in list(self.open):
            if store.path(name).exists():
                self.close(name, store)

    def close(self, name: str, store: Store) -> None:
        """The cell is done with; if it is finished, the seconds it took count."""
        kind = self.open.pop(name, None)
        if kind is not None and store.path(name).exists():
            try:
                self.seconds.setdefault(kind, []).append(float(store.seal(name)["meta"]["seconds"]))
            except (StoreError, KeyError, ValueError, TypeError):
                self.open[name] = kind  # damaged: it will be computed again

    def left(self, running: float = 0.0) -> float | None:
        """Seconds left when the cell now computed has run for `running`; None while nothing is known."""
        if not self.open:
            return 0.0
        if not self.seconds:
            return None
        average = fmean(second for seconds in self.seconds.values() for second in seconds)
        means = {kind: fmean(seconds) for kind, seconds in self.seconds.items()}
        return max(sum(means.get(kind, average) for kind in self.open.values()) - running, 0.0)


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

    def render(self, task: Any) -> Text:
        return Text(f"{duration(self._left())} left", style="progress.remaining")


class Display:
    """What a person sees of a run, on stderr: a bar on a terminal, elsewhere a line for each computed cell.

    Used as a context manager. show: False for silence.
    """

    def __init__(self, order: Sequence[local.Cell], store: Store, show: bool, console: Console | None):
        self.console = console or Console(stderr=True, soft_wrap=True, highlight=False, quiet=not show)
        self.store, self.total, self.done = store, len(order), 0
        self.estimate = Estimate(order, store)
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
        self._bar = Progress(*columns, console=self.console, transient=True, disable=not bar)
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

    def begin(self, cell: local.Cell) -> None:
        self._start, self._waits = time.perf_counter(), False
        self._bar.update(self._task, description=cell.label)

    def passed(self, cell: local.Cell, failed: bool) -> None:
        self.done += 1
        self.estimate.close(cell.address, self.store)
        self._bar.update(self._task, completed=self.done)
        if self._lines and self._start is not None and not failed:
            took = duration(time.perf_counter() - self._start)
            left = duration(self.estimate.left())
            self.log(f"[{self.done}/{self.total}] {escape(cell.label)}: {took}; {left} left")
        self._start = None

    def waiting(self, cells: Sequence[local.Cell]) -> None:
        if not self._waits:
            self.log(f"waiting for {escape(cells[0].label)}, which another process computes")
            self._bar.update(self._task, description=f"another process: {cells[0].label}")
        self._waits = True
