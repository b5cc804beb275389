"""Predictions of cells that are planned and not yet measured, with the commit of the code that made them.

    lines = register(planned, lines, ("T0", "T1", "T2"), commit)
    looked_at(cell, keys(lines))     whether a cell's answers could be known when predictors were developed

A line is a prediction as in `predictors.tiers`, and "base" and "git". The first that is registered stands:
nothing replaces it. What a tier needs and nobody has measured yet can be registered later. A cell counts as
not looked at only if all of its compositions, on its base and draws of names, are registered; all others were
there while predictors were made.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
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
def measured() -> tuple[Cell, ...]:
    """Their cells."""
    return tuple(cell for folder in folders() for cell in frame.read(folder).groups())


def places(lines: Iterable[Line]) -> set[Place]:
    """What is registered, by any tier."""
    return {(line["spec_hash"], line["digest"], line["dataset"], line["names"]) for line in lines}


def looked_at(cell: Cell, registered: Collection[Place]) -> bool:
    """Whether a cell's answers could be known when predictors were made: all that is not registered."""
    return not all(
        (info.spec_hash, info.digest, info.dataset, info.names) in registered for info in cell.infos
    )
