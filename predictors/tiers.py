"""Predictions of every tier for measured cells, kept in a file so that nobody has to compute them again.

A line is what one tier says of one composition, given one base: {"tier", "spec_hash", "digest", "dataset",
"names", "asked": {"group/ask": {outcome: share}}}, or "refused" with the reason in the place of "asked".
Predictions of T0 do not depend on a base; they are kept with the drawings' (predictors.limit).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from predictors import limit
from predictors.curves import Curves
from predictors.plain import short
from predictors.registry import PREDICTORS, BaseModel, NoPredictionError
from results.cells import Cell
from results.frame import Frame
from results.rows import RowsError
from toytransformer.compositions import Composition, replace_file

Line = Mapping[str, Any]
COMMITTED = Path(__file__).parent / "data" / "tiers.jsonl"
#: Of a line: tier, spec hash, the base's digest, dataset and draw of names.
Key = tuple[str, str | None, str | None, str | None, int | None]


def read(path: Path = COMMITTED) -> list[Line]:
    """The kept lines, none where there is no file. Errors: RowsError on anything else."""
    if not path.exists():
        return []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        _ = [key(line) for line in lines]
        return lines
    except (ValueError, KeyError, TypeError) as error:
        raise RowsError(
            f"{path} holds no predictions ({error}): write it by `lora-limits agreement`"
        ) from error


def write(path: Path, lines: Iterable[Line]) -> None:
    """One line each; the file is replaced whole. What a tier lacks rows for is left out: they may come."""
    path.parent.mkdir(parents=True, exist_ok=True)
    told = [line for line in lines if "asked" in line or PREDICTORS[line["tier"]].lasts]
    replace_file(path, (json.dumps(line, allow_nan=False) + "\n" for line in told))


def key(line: Line) -> Key:
    """What tells a line from others."""
    return (line["tier"], line["spec_hash"], line["digest"], line["dataset"], line["names"])


@dataclass(frozen=True)
class Wanted:
    """A composition that was measured on one base, and what is kept of that base."""

    spec: Composition
    digest: str
    dataset: str
    names: int
    base: BaseModel


def wanted(cells: Iterable[Cell], frame: Frame, folder: Path, bases: Path) -> list[Wanted]:
    """The compositions behind trained cells, on draws of names whose features are kept.

    Features lie in the folder of the rows, or in the base's own one in `bases`.

    A cell whose base is not the one that was read (another digest) is left out.
    """
    read_off: dict[tuple[str, int], BaseModel | None] = {}
    found: dict[tuple[str, str, int], Wanted] = {}
    for cell in cells:
        for info in cell.infos if cell.trained else ():
            if info.dataset is None or info.names is None or info.digest is None:
                continue
            if info.spec_hash is None or info.spec_hash not in frame.specs:
                continue
            place = (info.dataset, info.names)
            if place not in read_off:
                features = BaseModel.read((folder, bases / info.base), *place)
                read_off[place] = features and replace(features, alone=alone(frame, *place))
            base = read_off[place]
            if base is not None and base.features.about["digest"] == info.digest:
                spec = Composition.from_json(json.dumps(frame.specs[info.spec_hash]))
                found.setdefault((info.spec_hash, *place), Wanted(spec, info.digest, *place, base))
    return list(found.values())


def alone(frame: Frame, dataset: str, names: int) -> Curves:
    """What the rows of one draw of names say of single adapters."""
    own = []
    for cell in frame.groups():
        infos = tuple(i for i in cell.infos if (i.dataset, i.names) == (dataset, names))
        if infos:
            keys = {info.key for info in infos}
            inside = np.array([key in keys for key in cell.column("cell")])
            own.append(replace(cell, infos=infos, index=cell.index[inside]))
    return Curves.of(own, frame.specs)


def complete(
    compositions: Sequence[Wanted],
    kept: Iterable[Line],
    tiers: Sequence[str],
    tick: Callable[[int, int], None] | None = None,
) -> list[Line]:
    """A line for each tier but T0 and each composition: those kept, and those that lack, computed."""
    lines = {key(line): line for line in kept}
    for number, one in enumerate(compositions, start=1):
        for tier in tiers:
            place = (tier, one.spec.spec_hash, one.digest, one.dataset, one.names)
            if tier != "T0" and (place not in lines or not PREDICTORS[tier].lasts):
                line = _line(tier, one)
                if "asked" in line or place not in lines:  # other rows of this base may say nothing
                    lines[place] = line
        if tick:
            tick(number, len(compositions))
    return list(lines.values())


def _line(tier: str, one: Wanted) -> Line:
    about: dict[str, Any] = {"tier": tier, "spec_hash": one.spec.spec_hash, "digest": one.digest}
    about |= {"dataset": one.dataset, "names": one.names}
    try:
        shares = PREDICTORS[tier].predict(one.spec, one.base)
    except NoPredictionError as refusal:
        return {**about, "refused": str(refusal)}
    asked = {
        name: {outcome: short(share) for outcome, share in said.items() if share}
        for name, said in shares.items()
    }
    return {**about, "asked": asked}


def of_cell(cell: Cell, tier: str, lines: Mapping[Key, Line], limits: Mapping[str, Line]) -> Line | None:
    """The shares that a tier predicts for a cell, mean over its draws of names; None where it says nothing.

    A cell without a composition is found by its own key (predictors.parts).

    limits: T0's rows by spec hash.
    """
    said = []
    for info in cell.infos:
        if tier == "T0":
            row = limits.get(info.spec_hash or "", {})
            shares = row.get("asked", {}).get(cell.question_kind, {}).get("shares")
        else:
            place = (tier, info.spec_hash or info.key, info.digest, info.dataset, info.names)
            shares = lines.get(place, {}).get("asked", {}).get(cell.question_kind)
        if shares is None:
            return None
        said.append(shares)
    outcomes = dict.fromkeys(outcome for shares in said for outcome in shares)
    return {name: sum(shares.get(name, 0.0) for shares in said) / len(said) for name in outcomes}


def limits() -> dict[str, Line]:
    """T0's kept rows by spec hash."""
    if not limit.COMMITTED.exists():
        return {}
    rows = json.loads(limit.COMMITTED.read_text(encoding="utf-8"))["rows"]
    return {row["spec_hash"]: row for row in rows}
