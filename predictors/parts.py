"""T3 where no composition says which adapter answers what: each adapter alone over weights, added up.

    s(o) = s_0(o) + sum_i (s_i(w_i; o) - s_0(o))        s_0: share of outcome o of the base
                                                        s_i(w; o): of adapter i alone at weight w, from its
                                                        scale curve

The mixture law (theory.md, section 9) for the shares of outcomes: to first order in the updates, and with all
of what is of one adapter alone in it. What it leaves out is what adapters do together. Shares are held within
[0, 1] and made to sum to 1. w is what the merge gives: 1 for `sum`, 1/n for `mean`, the realised gates of
Arrow on products. Rules on factors, whose cross terms no single adapter shows, and those that have no weights
are not predicted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from predictors.curves import realised
from predictors.registry import NoPredictionError
from predictors.scale_curves import ScaleCurve
from predictors.tiers import Line
from results.cells import Cell
from results.rows import BASE
from results.statistics import StatisticsError
from results.transfer import FOLLOWS, controls, merges

TIER = "T3"


@dataclass(frozen=True, eq=False)
class Said:
    """A merge without a composition: the shares predicted, or why there are none; and those of the base."""

    cell: Cell
    shares: Mapping[str, float] | None
    refused: str = ""
    base: Mapping[str, float] | None = None


def predicted(cells: Sequence[Cell]) -> list[Said]:
    """Every merge without a composition, in the order of the cells."""
    there, alone = controls(cells), _alone(cells)
    found = []
    for cell in merges(cells):
        if cell.info.spec_hash is not None:
            continue
        base = there.get(cell.key(*FOLLOWS, "layers"), {}).get(BASE)
        try:
            shares, refused = _shares(cell, base, alone.get(cell.key(*FOLLOWS), {})), ""
        except (NoPredictionError, StatisticsError) as error:
            shares, refused = None, str(error)
        found.append(Said(cell, shares, refused, None if base is None else base.outcomes))
    return found


def lines(said: Iterable[Said]) -> list[Line]:
    """The same as kept predictions are (predictors.tiers): by the key of a cell, as no spec has a hash.

    What the base says is a line of its own, of tier BASE.
    """
    found: dict[tuple[str, str], dict[str, object]] = {}
    for one in said:
        for tier, shares in ((TIER, one.shares), (BASE, one.base)):
            for info in one.cell.infos if shares is not None else ():
                about: dict[str, object] = {"tier": tier, "spec_hash": info.key, "digest": info.digest}
                about |= {"dataset": info.dataset, "names": info.names}
                line = found.setdefault((tier, info.key), {**about, "asked": {}})
                line["asked"] = {**line["asked"], one.cell.question_kind: shares}  # type: ignore[dict-item]
    return list(found.values())


def _alone(cells: Iterable[Cell]) -> dict[str, dict[str, dict[float, Cell]]]:
    """By place and adapter the cells of it alone, by weight."""
    found: dict[str, dict[str, dict[float, Cell]]] = {}
    for cell in cells:
        info = cell.info
        if info.control is not None and info.library == (info.control,):
            weight = info.weights[0] if info.weights else 1.0
            found.setdefault(cell.key(*FOLLOWS), {}).setdefault(info.control, {}).setdefault(weight, cell)
    return found


def _shares(cell: Cell, base: Cell | None, alone: Mapping[str, Mapping[float, Cell]]) -> Mapping[str, float]:
    library = cell.info.library
    if base is None:
        raise NoPredictionError("the base was not asked the same questions")
    places = {place for gate in cell.gates for place in gate or ()}
    gates = {place: cell.gate(place) for place in places}
    given = realised(cell.info.rule, library, cell.info.weights, gates, "answer", cell.question_kind)
    curves = {}
    for name in library:
        points = alone.get(name, {})
        if not any(0 < weight < 1 for weight in points) or 1 not in points:
            raise NoPredictionError(f"{name!r} was not asked alone at weight 1 and at one below")
        points = {0.0: base, **{weight: one.of_seeds(cell) for weight, one in points.items()}}
        curves[name] = {outcome: ScaleCurve.of(points, outcome) for outcome in cell.outcomes}
    shares = {}
    for outcome in cell.outcomes:
        start = base.outcome(outcome)
        moved = sum(curves[name][outcome](w) - start for name, w in zip(library, given, strict=True))
        shares[outcome] = min(1.0, max(0.0, start + moved))
    total = sum(shares.values())
    if not total:
        raise NoPredictionError("every outcome comes out below nothing")
    return {outcome: share / total for outcome, share in shares.items()}
