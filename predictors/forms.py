"""Tables of agreement, and of what is said of every cell, as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from predictors.agreement import Agreement, Measure, Said
from results.cells import RIGHT

MEASURES = ("rank", "majority", "error", "distance")
#: What tells one cell from another in a list of them.
CELL = ("base", "names", "task", "library", "rule", "questions")


def as_text(found: Sequence[Agreement]) -> str:
    """A table with a line for each base, question kind and predictor."""
    rows: list[tuple[str, ...]] = [("base", "questions", "predictor", "cells", *MEASURES)]
    rows += [
        (
            *(one.base, one.kind, one.predictor, str(one.cells)),
            *(with_interval(getattr(one, name)) for name in MEASURES),
        )
        for one in found
    ]
    return _aligned(rows)


def _aligned(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows]
    return "".join(f"{line.rstrip()}\n" for line in lines)


def as_csv(found: Sequence[Agreement]) -> str:
    """One line each, intervals in columns of their own."""
    text = io.StringIO()
    bounds = [f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high")]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["base", "kind", "predictor", "cells", "libraries", *bounds])
    for one in found:
        numbers = [n for name in MEASURES for n in _numbers(getattr(one, name))]
        writer.writerow([one.base, one.kind, one.predictor, one.cells, one.libraries, *numbers])
    return text.getvalue()


def as_json(found: Sequence[Agreement]) -> str:
    """One object a line; what is not defined is null."""
    rows = []
    for one in found:
        row = one.to_dict()
        for name in MEASURES:
            row[name] = {end: None if math.isnan(n) else n for end, n in row[name].items()}
        rows.append(json.dumps(row) + "\n")
    return "".join(rows)


def cells_as_text(said: Sequence[Said]) -> str:
    """A line for each cell: share right, measured and predicted, the most frequent outcome in brackets."""
    predictors = list(said[0].predicted) if said else []
    rows = [(*CELL, "measured", *predictors)]
    for one in said:
        shares = (one.measured, *one.predicted.values())
        rows.append((*_place(one), *(_right(share) for share in shares)))
    return _aligned(rows)


def cells_as_csv(said: Sequence[Said]) -> str:
    """The same with the share right and the most frequent outcome in columns of their own."""
    predictors = list(said[0].predicted) if said else []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = [f"{name}{part}" for name in ("measured", *predictors) for part in ("_right", "_most")]
    writer.writerow([*CELL, *columns])
    for one in said:
        pairs = [_pair(share) for share in (one.measured, *one.predicted.values())]
        writer.writerow([*_place(one), *(value for pair in pairs for value in pair)])
    return text.getvalue()


def cells_as_json(said: Sequence[Said]) -> str:
    """One object a line, with the shares of all outcomes."""
    return "".join(json.dumps(asdict(one)) + "\n" for one in said)


def _place(one: Said) -> tuple[str, ...]:
    draws = "+".join(map(str, one.names))
    return (one.base, draws, one.task, "+".join(one.library), one.rule, one.kind)


def _pair(shares: Mapping[str, float] | None) -> tuple[object, str]:
    if shares is None:
        return "", ""
    return round(shares.get(RIGHT, 0.0), 4), max(shares, key=lambda outcome: shares[outcome])


def _right(shares: Mapping[str, float] | None) -> str:
    right, most = _pair(shares)
    return f"{right:.2f} ({most})" if shares is not None else "-"


def with_interval(measure: Measure) -> str:
    """A number and its interval, a dash where it is not defined; without one where there is none."""
    if math.isnan(measure.value):
        return "-"
    if math.isnan(measure.low):
        return f"{measure.value:.2f}"
    return f"{measure.value:.2f} [{measure.low:.2f}, {measure.high:.2f}]"


def _numbers(measure: Measure) -> tuple[object, ...]:
    return tuple("" if math.isnan(n) else round(n, 4) for n in (measure.value, measure.low, measure.high))
