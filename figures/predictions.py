"""What the toy model predicts for measured compositions, in the full limit, kept in a file by spec hash.

The specs are those that lie beside the measured rows; nothing is built from what rows are called.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from figures import store
from figures.store import Row
from predictors.limit import COMMITTED, predicted
from results.rows import RowsError
from toytransformer.compositions import Composition


def complete(
    specs: Mapping[str, object], kept: Iterable[Row] = (), tick: Callable[[int, int], None] | None = None
) -> list[Row]:
    """A row for every spec: those kept, and those that lack, computed with `tick(done, all)` after each.

    specs: as parsed JSON, by hash. Errors: RowsError where a spec that is computed has another hash.
    """
    rows = {row["spec_hash"]: row for row in kept}
    missing = [spec_hash for spec_hash in specs if spec_hash not in rows]
    for number, spec_hash in enumerate(missing, start=1):
        spec = Composition.from_json(json.dumps(specs[spec_hash]))
        if spec.spec_hash != spec_hash:
            raise RowsError(
                f"the spec of {spec.name} that is kept as {spec_hash} has the hash {spec.spec_hash}: it was "
                "changed, or measured with other code; measure it anew"
            )
        rows[spec_hash] = predicted(spec)
        if tick:
            tick(number, len(missing))
    return [rows[spec_hash] for spec_hash in specs]


def by_hash(rows: Iterable[Row]) -> dict[str, dict[str, Row]]:
    """By spec hash and "group/ask" what is predicted, with the regime it was computed in."""
    return {
        row["spec_hash"]: {
            question: {**said, **{name: row[name] for name in ("tied", "regime", "draws")}}
            for question, said in row["asked"].items()
        }
        for row in rows
        if "refused" not in row
    }


def read(path: Path = COMMITTED) -> list[Row]:
    """The predictions that are kept; none where there is no file."""
    return store.read(path) if path.exists() else []


def lacking(rows: Iterable[Row], kept: Iterable[Row]) -> int:
    """How many of the rows were not kept."""
    there = {row["spec_hash"] for row in kept}
    return sum(row["spec_hash"] not in there for row in rows)
