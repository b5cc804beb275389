"""The part of the page on two-hop questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from figures import reading
from figures.drawings.recycle import METHOD
from figures.report.parts import part
from figures.report.two_hop import case_by_case, opening
from figures.store import Row
from results.cells import Cell
from results.recycled import LAW


@part("two-hop", opening="two_hop/opening.html", cases="two_hop/cases.html")
def said(cells: Sequence[Cell], drawn: Sequence[Row]) -> Mapping[str, object]:
    """What composes, what does not, and why; and the rows of the outcome map in words."""
    lines = opening.lines(cells)
    return {
        "lines": lines,
        "models": list(dict.fromkeys(model for line in lines for model in line.cells)),
        "verdicts": opening.verdicts(lines),
        "instead": opening.instead(lines),
        "reasons": opening.reasons(cells),
        "measured": opening.measured,
        "ways": opening.WAYS,
        "tone": {opening.COMPOSES: "yes", opening.FAILS: "no", opening.OPEN: ""},
        "pools": reading.pools(),
        "methods": (METHOD, LAW),
        "summary": case_by_case.summary([row for row in drawn if row["figure"] == "outcomes"]),
    }
