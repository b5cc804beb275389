"""Negative transfer: merges beside the better of their adapters alone, on the same questions.

    transfers(cells)     of every merge whose adapters were each asked alone

The unit is the cluster (a template, a problem): differences are of a cluster's mean share right, tested by
sign flips (results.contrasts). Which adapter is the better one is read off the same answers, so that its lead
is partly luck. A merge counts as *below* only if it is below one of its adapters by a p that is multiplied by
how many there are, and as *above* only if it is above every one of them; Holm's correction is over the merges
of one model and domain.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from results import statistics
from results.cells import Cell
from results.contrasts import Contrast, contrast
from results.rows import BASE

BELOW, ABOVE, UNDECIDED = "below", "above", "undecided"
#: In the order in which they are counted.
VERDICTS = (BELOW, UNDECIDED, ABOVE)
#: Of Holm's p.
LEVEL = 0.05


@dataclass(frozen=True, eq=False)
class Transfer:
    """A merge and its adapters alone, of the training seeds that all of them have.

    better: the name of the one with more right, of equal ones the first. against: by name the merge minus
    that adapter. p: of the verdict that the differences point to; holm: adjusted for all merges of one model
    and domain. base: what the model answers without adapters, None where that was not asked.
    """

    merged: Cell
    alone: Mapping[str, Cell]
    base: Cell | None
    better: str
    against: Mapping[str, Contrast]
    p: float
    holm: float = 1.0

    @property
    def difference(self) -> Contrast:
        """The merge minus its better adapter."""
        return self.against[self.better]

    @property
    def verdict(self) -> str:
        """BELOW or ABOVE where Holm's p is under LEVEL, else UNDECIDED."""
        if self.holm >= LEVEL:
            return UNDECIDED
        return BELOW if self.difference.difference < 0 else ABOVE


#: What a merge and an adapter alone differ in.
FOLLOWS = ("library", "rule", "weights", "options", "control", "spec_hash")


def controls(cells: Iterable[Cell]) -> dict[str, dict[str, Cell]]:
    """By place the single adapters, at weight 1 and by name, and the base (BASE)."""
    found: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        info = cell.info
        if info.control == BASE:
            found.setdefault(cell.key(*FOLLOWS, "layers"), {})[BASE] = cell
        elif info.control is not None and info.library == (info.control,) and info.weights in (None, (1.0,)):
            found.setdefault(cell.key(*FOLLOWS), {}).setdefault(info.control, cell)
    return found


def merges(cells: Iterable[Cell]) -> list[Cell]:
    """Several trained adapters as they are, at the weights that the rule gives them."""
    return [
        cell
        for cell in cells
        if cell.trained
        and cell.info.control is None
        and len(cell.info.library) > 1
        and not cell.info.weights
        and not cell.info.variant
    ]


def transfers(cells: Sequence[Cell]) -> list[Transfer]:
    """One for every merge whose adapters were asked alone, about two clusters at least, with a seed in
    common.
    """
    there, found = controls(cells), []
    for merged in merges(cells):
        singles = there.get(merged.key(*FOLLOWS), {})
        if not all(name in singles for name in merged.info.library):
            continue
        one = _transfer(merged, {name: singles[name] for name in merged.info.library}, there)
        if one is not None:
            found.append(one)
    families: dict[tuple[str, str], list[float]] = {}
    for one in found:
        families.setdefault(_family(one), []).append(one.p)
    adjusted = {family: iter(statistics.holm(ps)) for family, ps in families.items()}
    return [replace(one, holm=next(adjusted[_family(one)])) for one in found]


def _family(one: Transfer) -> tuple[str, str]:
    return one.merged.info.base, one.merged.info.domain


def _transfer(
    merged: Cell, alone: Mapping[str, Cell], there: Mapping[str, Mapping[str, Cell]]
) -> Transfer | None:
    base = there.get(merged.key(*FOLLOWS, "layers"), {}).get(BASE)
    try:
        for cell in alone.values():
            merged = merged.of_seeds(cell)
        singles = {name: cell.of_seeds(merged) for name, cell in alone.items()}
        against = {name: contrast(merged, cell) for name, cell in singles.items()}
    except statistics.StatisticsError:  # other seeds, other questions, or a single cluster
        return None
    better = max(singles, key=lambda name: singles[name].share)
    if against[better].difference < 0:
        lower = [one.p for one in against.values() if one.difference < 0]
        p = min(1.0, len(singles) * min(lower))
    else:
        p = max(one.p for one in against.values())
    return Transfer(merged, singles, base, better, against, p)
