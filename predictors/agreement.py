"""How well predicted outcomes agree with measured ones, tier beside tier and beside two plain guesses.

Of merged cells (several trained adapters): rank correlation of the share right, the share of cells whose most
frequent outcome is the predicted one, the mean error of the share right. Intervals are bootstraps over whole
libraries, as cells of one library are not independent. The guesses: for every cell the mean shares of these
cells, with whatever outcome is the most frequent in most of them in front; and that a merged model says what
its base says.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import stats

from predictors import tiers
from predictors.tiers import Key, Line
from results.cells import RIGHT, Cell
from results.rows import BASE
from results.statistics import group_bootstrap

COMMONEST, BASE_SAYS = "commonest outcome", "what the base says"
#: Bootstrap draws of whole libraries.
DRAWS = 999


@dataclass(frozen=True)
class Measure:
    """A number and its 95% bootstrap interval over libraries; NaN where it is not defined: of one."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Agreement:
    """One predictor on one set of cells.

    rank: Spearman's correlation of predicted and measured share right. majority: share of cells whose most
    frequent outcome is the predicted one. error: mean |predicted - measured| share right. distance: mean half
    sum over outcomes of |predicted - measured| share.
    """

    base: str
    kind: str
    predictor: str
    cells: int
    libraries: int
    rank: Measure
    majority: Measure
    error: Measure
    distance: Measure

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        return asdict(self)


def plain(cell: Cell) -> bool:
    """Whether a cell counts: several trained adapters as they are, not one of a sweep of weights.

    Dozens of points of one library would outweigh all others.
    """
    return cell.trained and len(cell.info.library) > 1 and not cell.info.variant and not cell.info.weights


def table(
    cells: Sequence[Cell], names: Sequence[str], lines: Mapping[Key, Line], limits: Mapping[str, Line]
) -> list[Agreement]:
    """By base model and question kind ("all": together) the agreement of every tier and guess.

    All on the same cells: those of which every one of the tiers says something. Cells without a composition,
    of which T3 alone speaks, stand apart, by their domain.
    """
    found = []
    for base in dict.fromkeys(cell.info.base for cell in cells):
        counted = [cell for cell in cells if cell.info.base == base and plain(cell)]
        specified = [cell for cell in counted if cell.info.spec_hash is not None]
        found += _table(base, "", specified, names, lines, limits)
        others = [cell for cell in counted if cell.info.spec_hash is None and cell.info.control is None]
        for domain in dict.fromkeys(cell.info.domain for cell in others):
            own = [cell for cell in others if cell.info.domain == domain]
            found += _table(base, f"{domain}: ", own, ("T3",), lines, limits)
    return found


def _table(
    base: str,
    before: str,
    own: Sequence[Cell],
    names: Sequence[str],
    lines: Mapping[Key, Line],
    limits: Mapping[str, Line],
) -> list[Agreement]:
    found = []
    said = {name: [tiers.of_cell(cell, name, lines, limits) for cell in own] for name in names}
    both = [i for i in range(len(own)) if all(said[name][i] is not None for name in names)]
    kinds = dict.fromkeys(own[i].question_kind for i in both)
    for kind in (*kinds, "all"):
        inside = [i for i in both if kind in ("all", own[i].question_kind)]
        if not inside:
            continue
        there = [own[i] for i in inside]
        predictions: dict[str, list[Line]] = {name: [said[name][i] or {} for i in inside] for name in names}
        predictions |= guesses(there, lines)
        found += [compared(base, before + kind, name, there, shares) for name, shares in predictions.items()]
    return found


@dataclass(frozen=True)
class Said:
    """One merged cell: what was measured, and what every predictor says of it, None where it says nothing.

    measured and the values of predicted: shares of outcomes.
    """

    base: str
    names: tuple[int, ...]
    task: str
    library: tuple[str, ...]
    rule: str
    kind: str
    measured: Mapping[str, float]
    predicted: Mapping[str, Mapping[str, float] | None]


def by_cell(
    cells: Sequence[Cell], names: Sequence[str], lines: Mapping[Key, Line], limits: Mapping[str, Line]
) -> list[Said]:
    """What each of these predictors says of every cell that counts, beside what was measured."""
    found = []
    for cell in filter(plain, cells):
        info = cell.info
        said = {name: tiers.of_cell(cell, name, lines, limits) for name in names}
        measured = {outcome: cell.outcome(outcome) for outcome in cell.outcomes}
        rule = info.rule or ""
        about = (info.base, cell.names, info.task, tuple(info.library), rule, cell.question_kind)
        found.append(Said(*about, measured, said))
    return found


def guesses(cells: Sequence[Cell], lines: Mapping[Key, Line] | None = None) -> dict[str, list[Line]]:
    """The two plain guesses, as predictions of these cells.

    lines: what the bases of cells without a composition say (predictors.parts); others say the old answer.
    """
    common = [cell.most_frequent for cell in cells]
    outcome = max(dict.fromkeys(common), key=common.count)
    names = dict.fromkeys(name for cell in cells for name in cell.outcomes)
    constant = {name: float(np.mean([cell.outcome(name) for cell in cells])) for name in names}
    constant[outcome] = max(constant[outcome], max(constant.values()) + 1e-9)  # it is the one that is named
    before = [(lines and tiers.of_cell(cell, BASE, lines, {})) or {"old": 1.0} for cell in cells]
    return {COMMONEST: [constant] * len(cells), BASE_SAYS: before}


def compared(
    base: str,
    kind: str,
    name: str,
    cells: Sequence[Cell],
    shares: Sequence[Line],
    draws: int = DRAWS,
) -> Agreement:
    """Agreement of predicted shares with these cells; draws: of the bootstrap."""
    outcomes = list(dict.fromkeys(o for cell in cells for o in cell.outcomes))
    measured = np.array([[cell.outcome(o) for o in outcomes] for cell in cells])
    predicted = np.array([[said.get(o, 0.0) for o in outcomes] for said in shares])
    right = outcomes.index(RIGHT)
    libraries = [library(cell) for cell in cells]

    hit = measured.argmax(axis=1) == predicted.argmax(axis=1)
    off = np.abs(measured - predicted)

    def statistics(rows: np.ndarray) -> list[float]:
        return [
            spearman(predicted[rows, right], measured[rows, right]),
            float(hit[rows].mean()),
            float(off[rows, right].mean()),
            float(off[rows].sum(axis=1).mean() / 2),
        ]

    values = statistics(np.arange(len(cells)))
    intervals = [(math.nan, math.nan)] * len(values)
    if len(set(libraries)) > 1:
        intervals = group_bootstrap(statistics, libraries, seed=0, draws=draws)
    measures = [Measure(value, *ends) for value, ends in zip(values, intervals, strict=True)]
    return Agreement(base, kind, name, len(cells), len(set(libraries)), *measures)


def library(cell: Cell) -> Hashable:
    """What cells of one library of adapters have in common, as something to group by."""
    info = cell.info
    return (info.base, info.task, info.library, info.dataset, info.layers)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Rank correlation; NaN where one side has one value only."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(stats.rankdata(first), stats.rankdata(second))[0, 1])
