"""The file of rows: read, written, and the plain form of numbers and regimes in it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from predictors.plain import Row, described, short
from toytransformer.compositions import provenance, replace_file
from toytransformer.compositions.io import read_json

__all__ = ["COMMITTED", "Row", "described", "one", "read", "short", "write"]

COMMITTED = Path(__file__).parent / "data" / "theory_rows.json"


def write(path: Path, rows: Iterable[Row]) -> None:
    """One row a line, under what they were computed with; the file is replaced whole."""
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, [f'{{"provenance": {json.dumps(provenance())},\n"rows": [\n{lines}\n]}}\n'])


def read(path: Path) -> list[Row]:
    """The rows of a file, each with the provenance they share. Errors: ValueError naming the file."""
    try:
        stored = read_json(path)
        if not stored["rows"]:
            raise ValueError("the list is empty")
        return [{**row, "provenance": stored["provenance"]} for row in stored["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no rows ({error}); compute them with --fresh") from error


def one(rows: Iterable[Row], **wanted: object) -> Row:
    """The only row with these values; errors: ValueError when there is none, or more than one."""
    chosen = [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]
    if len(chosen) != 1:
        raise ValueError(f"{len(chosen)} rows with {wanted}, need one; compute them anew with --fresh")
    return chosen[0]
