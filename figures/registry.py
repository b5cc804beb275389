"""The figures, each declared once: by the decorator `figure` on what draws it, in a file of figures/drawings.

Those in `drawings/theory` draw what the theory computes, those in a domain's folder what was measured on its
tasks; the others draw any domain.

A figure says what it is called, how it is titled and explained on a page, where on it it stands, and which
rows it needs. The command line, the report and the tests have it from here; nothing else lists figures.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from matplotlib.figure import Figure

from figures import style
from figures.store import Row
from results.cells import Cell
from results.recycled import Pool


class NothingToDrawError(ValueError):
    """The rows hold nothing for a drawing; the message says what it needs."""


@dataclass(frozen=True)
class Data:
    """What figures are drawn from.

    theory: computed rows, by figure. cells: measured ones, training seeds pooled, with their predictions.
    edits: measured rows on closed-form edits. pools: of each base, adapters of a pool fitted on examples.
    """

    theory: Mapping[str, Sequence[Row]] = field(default_factory=dict)
    cells: Sequence[Cell] = ()
    edits: Sequence[Row] = ()
    pools: Sequence[Pool] = ()


def one_draw(cells: Iterable[Cell]) -> list[Cell]:
    """Of cells that differ in the split or the precision alone, the first; draws of names are one cell.

    A place in a drawing is one cell; every one stands in the tables of the report.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.key("items", "split", "dtype"), cell)
    return list(first.values())


T = TypeVar("T")


@dataclass(frozen=True)
class Needs(Generic[T]):
    """Which rows a figure is drawn from: `of(data, name of the figure)`; measured: not the theory alone."""

    of: Callable[[Data, str], Sequence[T]]
    measured: bool = True


THEORY: Needs[Row] = Needs(lambda data, name: data.theory.get(name, ()), measured=False)
CELLS: Needs[Cell] = Needs(lambda data, _: one_draw(data.cells))
EDITS: Needs[Row] = Needs(lambda data, _: data.edits)
POOLS: Needs[Pool] = Needs(lambda data, _: data.pools)


def cells_of(domain: str) -> Needs[Cell]:
    """The measured cells of one domain, for a figure that knows its words."""
    return Needs(lambda data, _: one_draw(cell for cell in data.cells if cell.info.domain == domain))


@dataclass(frozen=True)
class Drawing:
    """A registered figure; place: its place on a page, from the top."""

    name: str
    title: str
    caption: str
    place: int
    measured: bool
    from_data: Callable[[Data], Figure]

    def save(self, data: Data, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
        """Write it in every format. Errors: NothingToDrawError naming what the rows lack."""
        with style.look():
            drawn = self.from_data(data)
            folder.mkdir(parents=True, exist_ok=True)
            return style.save(drawn, folder / self.name, formats)


_FIGURES: dict[str, Drawing] = {}


def figure(
    name: str, title: str, caption: str, *, place: int, needs: Needs[T]
) -> Callable[[Callable[[Sequence[T]], Figure]], Callable[[Sequence[T]], Figure]]:
    """Register what draws the figure of this name from the rows that it needs.

    Errors: ValueError where the name or the place is taken.
    """

    def register(draw: Callable[[Sequence[T]], Figure]) -> Callable[[Sequence[T]], Figure]:
        def from_data(data: Data) -> Figure:
            rows = needs.of(data, name)
            try:
                if not rows and not needs.measured:
                    raise NothingToDrawError("needs rows of the theory: compute them with --fresh")
                return draw(rows)
            except NothingToDrawError as error:
                raise NothingToDrawError(f"{name} {error}") from error

        for other in _FIGURES.values():
            if name == other.name or place == other.place:
                raise ValueError(f"figure {name} at place {place}: {other.name} has place {other.place}")
        _FIGURES[name] = Drawing(name, title, caption, place, needs.measured, from_data)
        return draw

    return register


def figures() -> dict[str, Drawing]:
    """Every figure by name, in the order of a page; the files of figures/drawings are imported."""
    from figures import drawings

    for module in pkgutil.walk_packages(drawings.__path__, f"{drawings.__name__}."):
        importlib.import_module(module.name)
    return dict(sorted(_FIGURES.items(), key=lambda item: item[1].place))
