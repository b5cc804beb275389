"""The ledger on the page: its claims with their checks, and where they read otherwise than the paper.

It is the JSON that `python -m toytransformer verify --json FILE` writes: a list of rows with the keys in
`COLUMNS`. A row whose verdict starts with "fail" counts as failed.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from toytransformer.compositions.io import read_json

COLUMNS = (
    "claim",
    "source",
    "regime",
    "expected",
    "measured",
    "tolerance",
    "tolerance_kind",
    "verdict",
    "note",
    "proof",
    "reason",
    "provenance",
)


class ReportError(ValueError):
    """A ledger that cannot be put on a page; the message says what is wrong with it."""


def read(path: Path) -> list[dict]:
    """The ledger's rows; refuses a file that is not a list of rows with every column."""
    remedy = "`python -m toytransformer verify --json FILE` writes a ledger"
    try:
        rows = read_json(path)
    except ValueError as error:
        raise ReportError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(rows, list) or not rows:
        raise ReportError(f"{path} holds no rows; {remedy}")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ReportError(f"{path}: row {number} is {row!r}, not an object; {remedy}")
        if missing := [column for column in COLUMNS if column not in row]:
            raise ReportError(f"{path}: row {number} lacks {', '.join(missing)}; {remedy}")
    return rows


def failed(row: Mapping) -> bool:
    return str(row["verdict"]).lower().startswith("fail")


def claims(rows: Sequence[Mapping]) -> list[dict]:
    """The rows by claim, which is the text before the first colon; what fails comes first."""
    by_name: dict[str, dict] = {}
    for row in rows:
        name, _, statement = row["claim"].partition(": ")
        blank = {"name": name, "source": row["source"], "proof": row["proof"], "rows": [], "failures": 0}
        entry = by_name.setdefault(name, blank)
        entry["rows"].append({**row, "statement": statement or name})
        entry["failures"] += failed(row)
    for entry in by_name.values():
        entry["rows"].sort(key=failed, reverse=True)
    return sorted(by_name.values(), key=lambda entry: not entry["failures"])


def corrections(rows: Sequence[Mapping]) -> dict[str, list[str]]:
    """Where the paper's words are not what holds: the remarks that say so, once each, by claim."""
    by_claim: dict[str, list[str]] = {}
    for row in rows:
        note = row["note"]
        if note.startswith("paper") or "the paper says" in note:
            remarks = by_claim.setdefault(row["claim"].partition(": ")[0], [])
            if note not in remarks:
                remarks.append(note)
    return by_claim
