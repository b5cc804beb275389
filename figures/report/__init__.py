"""One self-contained page: what composes and why, the ledger, the drawings, the cells, where they come from.

Its numbers are those of a ledger, of the rows behind the drawings, of the committed measurements and of
runs on this machine. It loads nothing from elsewhere.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from figures import predictions as kept_predictions
from figures import reading, store
from figures.registry import one_draw
from figures.report import cells, ledger, rerun, sources, tables
from figures.report import drawings as pictures
from figures.report.parts import PARTS
from figures.report.rerun import Rerun
from figures.report.sources import Source
from figures.store import Row
from results import frame as frames
from results.cells import DAGGER_NOTE, Cell
from toytransformer.compositions import provenance, replace_file

#: Rows that the theory computes, by their name in Content.
COMPUTED = {"checks": "ledger", "drawn": "drawings of the theory", "predictions": "predictions of the toy"}


@dataclass(frozen=True)
class Anew:
    """Of rows computed anew: how many the committed file has too, how many of those are equal, the new."""

    both: int
    equal: int
    new: int

    def __str__(self) -> str:
        text = f"{self.equal} of {self.both} rows are equal to the committed ones"
        return text + (f", {self.new} have no committed counterpart" if self.new else "")


@dataclass(frozen=True)
class Content:
    """What the page shows: the ledger, drawings, and measured rows with what is predicted of them.

    drawn: the rows behind the drawings of the theory. committed, runs: joined with `predictions`. reruns:
    each run beside the committed rows. anew: rows computed anew beside the committed file. files: what the
    rows of COMPUTED were read from.
    """

    checks: Sequence[Mapping[str, object]]
    drawings: Sequence[Mapping[str, str]] = ()
    drawn: Sequence[Row] = ()
    committed: Sequence[Source] = ()
    runs: Sequence[Source] = ()
    reruns: Sequence[Rerun] = ()
    predictions: Sequence[Row] = ()
    anew: Mapping[str, Anew] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        """Checks that fail, and runs that differ from the committed rows or hold nothing."""
        return sum(map(ledger.failed, self.checks)) + sum(run.failed for run in self.reruns)

    def sentences(self) -> list[str]:
        """What came out, in a line each."""
        broken = sum(map(ledger.failed, self.checks))
        lines = [f"{broken} of {len(self.checks)} checks fail" if broken else "every claim holds"]
        lines += [f"{COMPUTED[name]}, computed anew: {anew}" for name, anew in self.anew.items()]
        return lines + [f"{run.name}: {run.sentence}" for run in self.reruns]

    @property
    def cells(self) -> list[Cell]:
        """The committed cells, and those of runs on other models; of several splits the first."""
        cells = sources.all_cells(self.committed)
        digests = {cell.info.digest for cell in cells}
        others = [cell for cell in sources.all_cells(self.runs) if cell.info.digest not in digests]
        return one_draw([*cells, *others])


def gather(
    ledger_file: Path,
    drawings: Path | None = None,
    rows: Path = store.COMMITTED,
    toy_file: Path = kept_predictions.COMMITTED,
    measured: Sequence[Path] = (),
    runs: Sequence[Path] = (),
    tick: Callable[[int, int], None] | None = None,
) -> Content:
    """Read everything; predictions that lack are computed, with `tick(done, all)` after each.

    rows: behind the drawings of the theory. toy_file: predictions of what was measured. measured: committed
    files of that. Errors: ValueError naming what cannot be read.
    """
    checks = ledger.read(ledger_file)
    several = [sources.read(folder) for folder in (*measured, *runs)]
    predictions = reading.predict([source.frame for source in several], kept_predictions.read(toy_file), tick)
    said = kept_predictions.by_hash(predictions)
    several = [replace(s, cells=tuple(frames.predicted(s.cells, said))) for s in several]
    kept, ran = several[: len(measured)], several[len(measured) :]
    drawn = store.read(rows)
    anew = {}
    if rows.resolve() != store.COMMITTED.resolve():
        anew["drawn"] = beside(_numbered(drawn), _numbered(store.read(store.COMMITTED)))
    if toy_file.resolve() != kept_predictions.COMMITTED.resolve():
        anew["predictions"] = beside(_hashed(predictions), _hashed(kept_predictions.read()))
    return Content(
        checks,
        pictures.embed(drawings) if drawings else (),
        drawn,
        kept,
        ran,
        [rerun.compare(run, kept) for run in ran],
        predictions,
        anew,
        {"checks": ledger_file, "drawn": rows, "predictions": toy_file},
    )


Key = TypeVar("Key", bound=Hashable)


def beside(rows: Mapping[Key, Row], committed: Mapping[Key, Row]) -> Anew:
    """Rows computed anew beside the committed ones, each by what tells it from the others of its file."""
    both = rows.keys() & committed.keys()
    equal = sum(_content(rows[key]) == _content(committed[key]) for key in both)
    return Anew(len(both), equal, len(rows) - len(both))


def _numbered(rows: Sequence[Row]) -> dict[tuple[str, int], Row]:
    """The rows by figure and number in it: figures may be computed in any order."""
    counts: Counter[str] = Counter()
    numbered = {}
    for row in rows:
        numbered[row["figure"], counts[row["figure"]]] = row
        counts[row["figure"]] += 1
    return numbered


def _content(row: Row) -> str:
    """A row as text, without where it comes from."""
    return json.dumps({**row, "provenance": None}, sort_keys=True)


def _hashed(rows: Sequence[Row]) -> dict[str, Row]:
    return {row["spec_hash"]: row for row in rows}


def write(out: Path, content: Content) -> None:
    """Write the page, all or nothing."""
    out.parent.mkdir(parents=True, exist_ok=True)
    replace_file(out, [render(content)])


def render(content: Content) -> str:
    """The page as HTML; every text from outside is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"value": value, "merge": cells.merge}
    environment.tests["failed"] = ledger.failed
    environment.globals["groups"] = tables.groups
    parts = [
        {
            "opening": part.opening,
            "cases": part.cases,
            **part.said([cell for cell in content.cells if cell.info.domain == domain], content.drawn),
        }
        for domain, part in PARTS.items()
    ]
    return environment.get_template("page.html").render(
        content=content,
        parts=parts,
        elsewhere={run.name: sorted(set(run.commits) - {provenance()["git"]}) for run in content.runs},
        claims=ledger.claims(content.checks),
        failures=sum(map(ledger.failed, content.checks)),
        corrections=ledger.corrections(content.checks),
        computed=COMPUTED,
        level=rerun.LEVEL,
        verdict_names=(rerun.IDENTICAL, rerun.WORDS, rerun.DIFFERS),
        sources=(*content.committed, *content.runs),
        caution=DAGGER_NOTE if any(cell.undertrained for cell in content.cells) else "",
        origins=_origins(content),
    )


def _origins(content: Content) -> dict[str, dict[str, str]]:
    """Where what was computed comes from: its file, and what all of its rows say of themselves."""
    origins = {}
    for name, title in COMPUTED.items():
        rows, file = getattr(content, name), content.files.get(name)
        about = {"rows": f"{len(rows):,}"} if file else {}
        if file and file.exists():
            about |= sources.identity(file)
        said: Row = next((row["provenance"] for row in rows if "provenance" in row), {})
        if about or said:
            origins[title] = {**about, **{key: value(entry) for key, entry in said.items()}}
    return origins


def value(item: object, digits: int = 6) -> str:
    """A table cell: numbers to some digits, lists item by item, nothing for None."""
    match item:
        case None:
            return ""
        case bool() | int():
            return str(item)
        case float():
            return f"{item:.{digits}g}"
        case list() | tuple():
            return ", ".join(map(value, item))
        case dict():
            return ", ".join(f"{key}: {value(entry)}" for key, entry in item.items())
        case _:
            return str(item)
