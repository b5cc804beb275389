"""Measured libraries beside what the paper prints: lines of a page, each with what differs in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from results import paper
from results.cells import RIGHT, Cell, percent
from results.rows import BASE, RANDOM
from results.tables import column, kind


@dataclass(frozen=True, eq=False)
class Line:
    """A cell on a page. adapters, merge: in words. paper: as it is printed, "10–34% (Table 3)"; empty
    without.

    differs: from what the paper's number is of.
    """

    cell: Cell
    adapters: str
    merge: str
    paper: str
    differs: str

    @property
    def about(self) -> str:
        """Task, data, layers and what was asked."""
        return f"{self.cell.info.task}; {column(self.cell)}; {kind(self.cell)}"


def lines(cells: Iterable[Cell], of: str = RIGHT) -> list[Line]:
    """Every cell at the weights that its rule gives, in the order of the rows; of: what is counted."""
    return [_line(cell, of) for cell in cells if not cell.info.weights]


def _line(cell: Cell, of: str) -> Line:
    like, info = paper.likened(cell, of), cell.info
    number = "" if like is None else f"{_span(like.printed)} ({_table(like.printed.table)})"
    adapters = " + ".join(info.library) or "none"
    if info.control not in (None, BASE) and info.library != (info.control,):
        adapters = f"{info.control}: {adapters}"
    rule = "" if info.control == BASE else "alone" if len(info.library) == 1 else info.rule
    return Line(cell, adapters, rule, number, "; ".join(like.differs) if like else "")


def _span(printed: paper.Printed) -> str:
    ends = sorted({printed.low, printed.high})
    return "–".join(f"{value:g}" for value in ends) + "%"


def _table(name: str) -> str:
    return f"Table {name.removeprefix('table')}"


def outcomes(cells: Iterable[Cell]) -> tuple[str, ...]:
    """What answers of these cells can be, but right."""
    return tuple(dict.fromkeys(name for cell in cells for name in cell.outcomes if name != RIGHT))


@dataclass(frozen=True, eq=False)
class Errors:
    """How a cell's answers come out. shares: of `outcomes`, in percent, each with the paper's where it has
    it.
    """

    line: Line
    shares: tuple[str, ...]


def errors(cells: Sequence[Cell], names: Sequence[str]) -> list[Errors]:
    """The base, single adapters and merges without random controls; names: outcomes and marks."""
    shown = [cell for cell in cells if not cell.info.weights and cell.info.control != RANDOM]
    return [Errors(_line(cell, RIGHT), tuple(_share(cell, name) for name in names)) for cell in shown]


def _share(cell: Cell, of: str) -> str:
    like = paper.likened(cell, of)
    if of in cell.frame.outcomes:
        share = cell.outcomes.get(of)
    else:
        share = cell.mark(of)
    beside = "" if like is None else f" (paper {_span(like.printed)})"
    return "–" if share is None else f"{percent(share)}%{beside}"


def unmeasured(domain: str, cells: Sequence[Cell]) -> list[str]:
    """The rows of the paper's tables of a domain that no cell is, in words; and where one stands for it."""
    there = [cell for cell in cells if cell.info.domain == domain]
    found = []
    for name, table in paper.tables().items():
        if table.get("fixed", {}).get("domain") != domain:
            continue
        for row in table["rows"]:
            numbers = [value for value in row["values"] if not math.isnan(value)]
            if not numbers:
                continue
            beside = {paper.stands_beside(cell, table, row) for cell in there}
            if "measured" not in beside:
                said = ", ".join(str(value) for key, value in row.items() if key != "values")
                span = "–".join(f"{value:g}" for value in sorted({min(numbers), max(numbers)}))
                instead = "; above, something else beside it" if "likened" in beside else ""
                found.append(f"{_table(name)}: {said} ({span}%){instead}")
    return found
