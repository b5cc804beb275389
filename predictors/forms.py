"""Tables of agreement as text, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence

from predictors.agreement import Agreement, Measure

MEASURES = ("rank", "majority", "error", "distance")


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


def with_interval(measure: Measure) -> str:
    """A number and its interval, a dash where it is not defined."""
    if math.isnan(measure.value):
        return "-"
    return f"{measure.value:.2f} [{measure.low:.2f}, {measure.high:.2f}]"


def _numbers(measure: Measure) -> tuple[object, ...]:
    return tuple("" if math.isnan(n) else round(n, 4) for n in (measure.value, measure.low, measure.high))
