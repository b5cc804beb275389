"""Every measured cell as a line of a table, in groups that one opens one at a time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from figures.notes import seeds
from figures.report.cells import merge, right
from results.cells import RIGHT, Cell, percent
from results.rows import RANDOM

BEFORE, AFTER = ("adapters", "merged by", "asked", "questions", "right"), ("predicted",)


@dataclass(frozen=True)
class Group:
    """Cells of one task that vary the same: the outcomes besides the right one, and lines in this order."""

    outcomes: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)

    @property
    def header(self) -> tuple[str, ...]:
        return (*BEFORE, *self.outcomes, *AFTER)


def groups(cells: Iterable[Cell]) -> dict[str, Group]:
    """The cells by what was varied."""
    by: dict[str, Group] = {}
    for cell in cells:
        outcomes = tuple(name for name in cell.outcomes if name != RIGHT)
        group = by.setdefault(_group(cell), Group(outcomes))
        group.rows.append(_line(cell, group.outcomes))
    return dict(sorted(by.items()))


def _group(cell: Cell) -> str:
    info = cell.info
    layers = f", {info.layers}" if info.layers not in (None, "mlp") else ""
    data = f" on {info.dataset}" if info.dataset else ""
    draws = f"draw {info.names} of names" if len(cell.names) == 1 else f"{len(cell.names)} draws of names"
    names = f", {draws}" if any(cell.names) else ""
    return f"{info.task}{data}{names}{layers}: {_varied(cell)}"


def _varied(cell: Cell) -> str:
    info = cell.info
    if info.control == RANDOM:
        return "random adapters"
    if len(info.library) < 2:
        return "the base and single adapters" if "relabelling" not in info.variant else "relabelled answers"
    for name, words in (
        ("gauge", "other factors of the same updates"),
        ("relabelling", "relabelled answers"),
        ("adapters", "sparse adapters"),
        ("initial_a", "other training"),
        ("steps", "other training"),
    ):
        if name in info.variant:
            return words
    if info.weights:
        return "weights"
    return "rules fitted to examples" if info.setting.get("examples") else "merge rules"


def _line(cell: Cell, outcomes: Iterable[str]) -> tuple[str, ...]:
    info = cell.info
    several = len(info.library) > 4
    library = f"{len(info.library)} adapters" if several else " + ".join(info.library) or "base alone"
    how = " in steps" if cell.ask == "steps" else ""
    predicted = cell.prediction and f"{percent(cell.prediction['shares'].get(RIGHT, 0.0))}%"
    return (
        library if info.control != RANDOM else f"random for {library}",
        merge(cell) if info.library else "",
        cell.group + how,
        f"{cell.items}, {seeds([cell])}",
        right(cell),
        *(f"{percent(cell.outcome(name))}%" for name in outcomes),
        predicted or "",
    )
