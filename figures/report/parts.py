"""What the page says of one domain alone: a part for each, in a folder of its own beside the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from figures.store import Row
from llm_experiments.registry import Registry
from results.cells import Cell

Said: TypeAlias = Callable[[Sequence[Cell], Sequence[Row]], Mapping[str, object]]


@dataclass(frozen=True)
class Part:
    """A domain's part of the page: two templates, and what they show of its cells and of the theory's rows.

    opening: at the top, None for nothing there. cases: behind what was checked. Both find what `said` returns
    as `part`.
    """

    opening: str | None
    cases: str
    said: Said


PARTS: Registry[Part] = Registry("part of the report", "figures.report")


def part(domain: str, *, opening: str | None, cases: str) -> Callable[[Said], Said]:
    """Enter what the page says of a domain; opening, cases: templates, by their path from the page's."""

    def enter(said: Said) -> Said:
        PARTS.add(domain, Part(opening, cases, said))
        return said

    return enter
