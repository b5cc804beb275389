"""The numbers behind the drawings of the theory, as plain JSON rows: one file a figure, of the figure's name.

A file's `jobs()` are functions that compute a few rows each and take a few seconds at most. Every row says
its regime, its seeds and how many draws stand behind it; the file of rows says once what all of them were
computed with, and `figures.store.read` puts that into each row.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable

from figures.store import Row

Computation = Callable[[], list[Row]]


def jobs(figure: str) -> list[Computation]:
    """The jobs of a figure. Errors: ModuleNotFoundError where none of the theory has this name."""
    computed: list[Computation] = importlib.import_module(f"{__name__}.{figure}").jobs()
    return computed


def compute(
    parts: Iterable[tuple[str, Computation]], tick: Callable[[str, int, int], None] | None = None
) -> list[Row]:
    """The rows of (figure, job) pairs; `tick(figure, jobs done, jobs)` after every job.

    Draws are made in float64, whatever JAX is set to.
    """
    import jax

    parts, rows = list(parts), []
    with jax.enable_x64(True):
        for number, (name, job) in enumerate(parts, start=1):
            rows += [{"figure": name, **row} for row in job()]
            if tick:
                tick(name, number, len(parts))
    return rows
