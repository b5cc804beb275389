"""A section for each domain without compositions: what was measured, beside the paper, and what was not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from figures.report.parts import Said, part
from figures.store import Row
from llm_experiments.domains.measured import names, section
from predictors.forms import with_interval
from results.cells import Cell


def _of(domain: str) -> Said:
    def said(cells: Sequence[Cell], drawn: Sequence[Row]) -> Mapping[str, object]:
        return {"section": section(domain, cells), "with_interval": with_interval}

    return said


for _name in names():
    part(_name, opening=None, cases="others/section.html")(_of(_name))
