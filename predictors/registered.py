"""Predictions of cells that are planned and not yet measured, with the commit of the code that made them.

    lines = register(planned, lines, ("T0", "T1", "T2"), commit)
    Known.of(lines).looked_at(cell)  whether a cell's answers could be known when predictors were developed

A line is a prediction as in `predictors.tiers`, and "base" and "git". The first that is registered stands:
nothing replaces it. What a tier needs and nobody has measured yet can be registered later. A cell counts as
not looked at only if all of its compositions, on its base and draws of names, are registered; all others were
there while predictors were made.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from predictors.plain import short
from predictors.registry import PREDICTORS, BaseModel, NoPredictionError
from predictors.tiers import Key, Line, key
from results import frame
from results.cells import Cell
from results.files import is_folder_of_rows
from toytransformer.compositions import Composition

REGISTERED = Path(__file__).parent / "data" / "registered.jsonl"
#: Measured after that: a folder of rows for each base, with its adapters alone over weights.
ROWS = Path(__file__).parent / "data" / "rows"
#: Of a composition on a base: spec hash, the base's digest, dataset and draw of names.
Place = tuple[str, str, str, int]


@dataclass(frozen=True)
class Planned:
    """A composition that will be measured, and what is known of its base, None where nothing is kept."""

    spec: Composition
    base_id: str
    digest: str
    dataset: str
    names: int
    base: BaseModel | None

    @property
    def place(self) -> Place:
        return (self.spec.spec_hash, self.digest, self.dataset, self.names)


def register(
    planned: Sequence[Planned], kept: Iterable[Line], tiers: Sequence[str], commit: str
) -> list[Line]:
    """The kept lines, and one for each tier and planned composition that has none yet.

    Errors: ValueError on a predictor that there is not.
    """
    if unknown := [tier for tier in tiers if tier not in PREDICTORS]:
        raise ValueError(f"there is no predictor {unknown[0]!r}: choose {', '.join(PREDICTORS)}")
    lines: dict[Key, Line] = {key(line): line for line in kept}
    for one in planned:
        for tier in tiers:
            about: dict[str, Any] = {
                **{"tier": tier, "spec_hash": one.spec.spec_hash, "digest": one.digest},
                **{"dataset": one.dataset, "names": one.names, "base": one.base_id},
                **{"composition": one.spec.name, "rule": one.spec.merge.rule, "git": commit},
            }
            if key(about) not in lines and (said := _said(tier, one)):
                lines[key(about)] = {**about, **said}
    return list(lines.values())


def _said(tier: str, one: Planned) -> dict[str, Any]:
    try:
        shares = PREDICTORS[tier].predict(one.spec, one.base)
    except NoPredictionError as refusal:
        lacking = one.base is None or not PREDICTORS[tier].lasts  # it may be measured yet
        return {} if lacking else {"refused": str(refusal)}
    return {
        "asked": {
            kind: {outcome: short(share) for outcome, share in said.items() if share}
            for kind, said in shares.items()
        }
    }


def folders() -> list[Path]:
    """The folders of rows of merges that were predicted before they were measured."""
    return [path for path in sorted(ROWS.glob("*")) if is_folder_of_rows(path)]


@cache
def measured() -> Mapping[str, tuple[Cell, ...]]:
    """Their cells, by folder."""
    return {folder.name: tuple(frame.read(folder).groups()) for folder in folders()}


@dataclass(frozen=True)
class Known:
    """What is registered: places by any tier, and the draws of names that each tier spoke of beforehand."""

    places: frozenset[Place]
    draws: Mapping[str, frozenset[tuple[str, str, int]]]

    @classmethod
    def of(cls, lines: Iterable[Line]) -> Known:
        """Of registered lines."""
        kept = [line for line in lines if "asked" in line]
        places = {(line["spec_hash"], line["digest"], line["dataset"], line["names"]) for line in lines}
        tiers = dict.fromkeys(line["tier"] for line in kept)
        of_tier = {
            tier: frozenset(
                (line["digest"], line["dataset"], line["names"]) for line in kept if line["tier"] == tier
            )
            for tier in tiers
        }
        return cls(frozenset(places), of_tier)

    def looked_at(self, cell: Cell, tier: str | None = None) -> bool:
        """Whether a cell's answers could be known when its predictions were made.

        All that is not registered, and with a tier all draws of names that it was not registered for: what a
        tier says of a cell beside those that it was registered for (a routed merge, whose gates have to be
        measured) comes from the same code.
        """
        return not all(
            (info.spec_hash, info.digest, info.dataset, info.names) in self.places
            and (tier is None or (info.digest, info.dataset, info.names) in self.draws.get(tier, ()))
            for info in cell.infos
        )

    def tiers(self, cells: Iterable[Cell]) -> tuple[str, ...]:
        """Those that were registered for every one of these cells' draws of names."""
        several = list(cells)
        return tuple(tier for tier in PREDICTORS if not any(self.looked_at(c, tier) for c in several))
