"""One self-contained page: every claim of the ledger, every drawing, and what they were made with.

The ledger is the JSON that `python -m toytransformer verify --json FILE` writes: a list of rows with the keys
in `COLUMNS`. A row whose verdict starts with "fail" counts as failed. Drawings are embedded as images; where
a folder holds one drawing in both formats, SVG is taken.
"""

import base64
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from toytransformer.compositions import provenance, replace_file

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
)
MEDIA = {".svg": "image/svg+xml", ".png": "image/png"}  # in order of preference


class ReportError(ValueError):
    """The ledger or the drawings cannot be put on a page."""


def write(out: Path, ledger: Path, drawings: Path | None = None) -> int:
    """Write the page to `out` and return how many claims failed."""
    rows = read_ledger(ledger)
    page = render(rows, embed(drawings) if drawings else [], provenance())
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, [page])
    return sum(failed(row) for row in rows)


def read_ledger(path: Path) -> list[dict]:
    """The ledger's rows; refuses a file that is not a list of rows with every column."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ReportError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise ReportError(
            f"{path} holds no rows; `python -m toytransformer verify --json {path}` writes them"
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise ReportError(f"{path}: row {number} is {row!r}, not an object")
        if missing := [column for column in COLUMNS if column not in row]:
            raise ReportError(f"{path}: row {number} lacks {', '.join(missing)}")
    return rows


def failed(row: Mapping) -> bool:
    return str(row["verdict"]).lower().startswith("fail")


def embed(folder: Path) -> list[dict[str, str]]:
    """Each drawing of the folder once, by name, as a data URI."""
    chosen: dict[str, Path] = {}
    for suffix in MEDIA:
        for path in sorted(folder.glob(f"*{suffix}")):
            chosen.setdefault(path.stem, path)
    return [
        {
            "name": stem.replace("_", " ").replace("-", " "),
            "uri": f"data:{MEDIA[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}",
        }
        for stem, path in sorted(chosen.items())
    ]


def render(rows: Sequence[Mapping], drawings: Sequence[Mapping], origin: Mapping) -> str:
    """The page as HTML; every text from outside is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["value"] = value
    environment.tests["failed"] = failed
    return environment.get_template("report.html").render(
        rows=rows,
        verdicts=Counter(row["verdict"] for row in rows),
        failures=sum(map(failed, rows)),
        drawings=drawings,
        origin=flatten(origin),
    )


def value(item: object) -> str:
    """A table cell: numbers to six digits, lists item by item, nothing for None."""
    match item:
        case None:
            return ""
        case bool() | int():
            return str(item)
        case float():
            return f"{item:.6g}"
        case list() | tuple():
            return ", ".join(map(value, item))
        case dict():
            return ", ".join(f"{key}: {value(entry)}" for key, entry in item.items())
        case _:
            return str(item)


def flatten(mapping: Mapping) -> dict[str, str]:
    """Nested provenance as one level of "outer inner" names."""
    flat = {}
    for name, entry in mapping.items():
        if isinstance(entry, Mapping):
            flat |= {f"{name} {inner}": text for inner, text in flatten(entry).items()}
        else:
            flat[str(name)] = value(entry)
    return flat
