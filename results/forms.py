"""Tables as text: for a terminal, as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from results.cells import DAGGER, DAGGER_NOTE, GARBLED, percent
from results.statistics import Shuffled
from results.tables import Comparison, Entry, by_model

#: Columns of rows that are no records, by their kind; of other kinds, all scalars.
CHOSEN = {
    "overlap": (
        *("dataset", "layer", "metric", "facts", "c1_own", "c1_other", "c1_gap", "c2_own", "c2_other"),
        *("c2_gap", "toy_c1_gap", "toy_c2_gap", "leak1", "leak2"),
    ),
}
#: Columns beside the outcomes, and what they say.
MARKED = ("garbled", "entropy")
MARKED_NOTE = (
    f"garbled: other answers whose name is 1 to {GARBLED} letters from a trained one; entropy: of the "
    "answers named, in nats, mean over training seeds; n equally frequent answers have log n, one alone 0"
)
HIDDEN = ("kind", "model", "source", "spec_hash", "provenance")


@dataclass(frozen=True)
class Grid:
    """A table: its title, the names of its columns, its rows of text, and remarks below it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def grids(entries: Sequence[Entry], compared: Sequence[Comparison] = ()) -> list[Grid]:
    """Accuracy and outcomes of each model and kind of question, then the paired comparisons."""
    found = []
    for (model, digest), own in by_model(entries).items():
        kinds = dict.fromkeys(entry.kind for entry in own)
        for kind in kinds:
            asked = [entry for entry in own if entry.kind == kind]
            found.append(_accuracy(f"{model} ({digest}), {kind}: right answers in %", asked))
            found.append(_outcomes(f"{model}, {kind}: outcomes in %", asked))
            scored = [(entry, entry.shuffled) for entry in asked if entry.shuffled]
            if scored:
                found.append(_shuffled(f"{model}, {kind}: log p of right answers", scored))
    found += [_compared(kind, compared) for kind in dict.fromkeys(c.kind for c in compared)]
    return found


def _accuracy(title: str, entries: Sequence[Entry]) -> Grid:
    columns = list(dict.fromkeys(entry.column for entry in entries))
    sizes = {c: {_sized(e) for e in entries if e.column == c} for c in columns}
    header = [c + (_size(*sizes[c].copy().pop()) if len(sizes[c]) == 1 else "") for c in columns]
    rows = []
    for line in dict.fromkeys(entry.line for entry in entries):
        here = {entry.column: entry for entry in entries if entry.line == line}
        cells = (_cell(here[c], len(sizes[c]) > 1) if c in here else "" for c in columns)
        rows.append((line, *cells))
    notes = ["95% Wilson intervals over questions, of the mean over training seeds; seeds: least to most"]
    if tables := sorted({entry.paper.table for entry in entries if entry.paper}):
        notes.append(f"paper: {', '.join(tables)}, its own models (least to most)")
    if any(len(entry.cell.names) > 1 for entry in entries):
        notes.append("n counts the questions of all draws of names")
    ways = {str(way): None for entry in entries for way in entry.cell.chosen.get("chosen_by", ())}
    if ways:
        notes.append(f"temperatures are chosen on development items, by right answers to: {', '.join(ways)}")
    return Grid(title, ("", *header), tuple(rows), (*notes, *_daggers(entries)))


def _daggers(entries: Iterable[Entry]) -> tuple[str, ...]:
    return (DAGGER_NOTE,) if any(entry.cell.undertrained for entry in entries) else ()


def _sized(entry: Entry) -> tuple[int, int]:
    return entry.cell.items, len(entry.cell.seeds)


def _size(items: int, seeds: int) -> str:
    return f", n = {items}" + (f" x {seeds} seeds" if seeds > 1 else "")


def _cell(entry: Entry, sized: bool) -> str:
    cell, seeds = entry.cell, entry.cell.seeds.values()
    text = f"{percent(cell.share)}{cell.dagger} [{percent(cell.low)}, {percent(cell.high)}]"
    if len(seeds) > 1:
        text += f", seeds {percent(min(seeds))} to {percent(max(seeds))}"
    text += _size(*_sized(entry)) if sized else ""
    if entry.paper:
        low, high = entry.paper.low, entry.paper.high
        text += f"; paper {low:g}" + (f" to {high:g}" if high != low else "")
    return text


def _outcomes(title: str, entries: Sequence[Entry]) -> Grid:
    names = tuple(dict.fromkeys(name for entry in entries for name in entry.cell.outcomes))
    rows = tuple(
        (
            entry.line + entry.cell.dagger,
            entry.column,
            *(percent(entry.cell.outcome(name)) for name in names),
            "" if entry.cell.garbled is None else percent(entry.cell.garbled),
            "" if entry.cell.entropy is None else f"{entry.cell.entropy:.2f}",
        )
        for entry in entries
    )
    return Grid(title, ("", "", *names, *MARKED), rows, (MARKED_NOTE, *_daggers(entries)))


def _shuffled(title: str, scored: Sequence[tuple[Entry, Shuffled]]) -> Grid:
    rows = tuple(
        (
            *(e.line + e.cell.dagger, e.column),
            *(f"{above.difference:+.2f}", f"{above.p:.2g}", str(above.questions)),
        )
        for e, above in scored
    )
    note = (
        "nats above the mean log p of the same answers dealt to other questions; p: of random dealings, "
        "not adjusted"
    )
    notes = (note, *_daggers(entry for entry, _ in scored))
    return Grid(title, ("", "", "above shuffled", "p", "questions"), rows, notes)


def _compared(kind: str, compared: Iterable[Comparison]) -> Grid:
    tests = [test for test in compared if test.kind == kind]
    rows = tuple(
        (
            test.first + DAGGER * test.undertrained[0],
            test.second + DAGGER * test.undertrained[1],
            test.column,
            _points(test),
            f"{test.better} : {test.worse} of {test.clusters}",
            f"{test.p:.2g}",
            f"{test.holm:.2g}",
        )
        for test in tests
    )
    notes = [
        "difference: second minus first in points, with its 95% bootstrap interval over clusters (chains, "
        "asked in several wordings); clusters: on how many the second has more right : less; p: signs of the "
        "clusters' "
        "differences flipped, all training seeds together; Holm: adjusted for all tests of one model and kind"
    ]
    if any(any(test.undertrained) for test in tests):
        notes.append(DAGGER_NOTE)
    header = ("first", "second", "", "difference", "clusters", "p", "Holm")
    return Grid(f"{kind}: compared on the same questions", header, rows, tuple(notes))


def _points(test: Comparison) -> str:
    numbers = [test.difference] + [bound for bound in (test.low, test.high) if bound is not None]
    difference, *bounds = (f"{round(100 * number, 1):+g}" for number in numbers)
    return difference + (f" [{', '.join(bounds)}]" if bounds else "")


def other_rows(rows: Iterable[Mapping[str, object]]) -> list[Grid]:
    """Rows that are no records (edits), one grid for each kind; what all rows share goes into the title."""
    kinds: dict[str, list[Mapping[str, object]]] = {}
    for row in rows:
        if row.get("kind") != "provenance":
            kinds.setdefault(str(row.get("kind")), []).append(row)
    found = []
    for kind, same in kinds.items():
        scalars = [k for k, v in same[0].items() if k not in HIDDEN and not isinstance(v, list | dict)]
        columns = [k for k in CHOSEN.get(kind, scalars) if k in scalars]
        fixed = [k for k in columns if len(same) > 1 and len({row.get(k) for row in same}) == 1]
        told = ", ".join(f"{k} = {_value(same[0].get(k))}" for k in fixed)
        shown = tuple(k for k in columns if k not in fixed)
        cells = tuple(tuple(_value(row.get(k)) for k in shown) for row in same)
        found.append(Grid(f"{same[0].get('source', '')} {kind}" + f" ({told})" * bool(told), shown, cells))
    return found


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# ---- forms ----


def print_rich(grids: Iterable[Grid], console: Console) -> None:
    """Print on a terminal."""
    for grid in grids:
        console.print(escape(grid.title), style="bold")
        table = Table(box=box.SIMPLE)
        for number, name in enumerate(grid.header):
            table.add_column(escape(name), justify="left" if number == 0 else "default")
        for row in grid.rows:
            table.add_row(*map(escape, row))
        console.print(table)
        for note in grid.notes:
            console.print(escape(note), style="dim")
        console.print()


def markdown(grids: Iterable[Grid]) -> str:
    """As Markdown, a heading for each table."""
    parts = []
    for grid in grids:
        lines = [f"### {grid.title}", ""]
        lines += [
            "| " + " | ".join(_barred(cell) for cell in row) + " |" for row in (grid.header, *grid.rows)
        ]
        lines.insert(3, "|" + " --- |" * len(grid.header))
        parts.append("\n".join([*lines, *("\n" + note + "." for note in grid.notes)]))
    return "\n\n".join(parts) + "\n"


def _barred(cell: str) -> str:
    return cell.replace("|", "\\|")


def as_csv(entries: Iterable[Entry]) -> str:
    """Every entry in one line; mappings become columns or JSON."""
    listed = list(entries)
    outcomes = tuple(dict.fromkeys(name for entry in listed for name in entry.cell.outcomes))
    plain = [_flat(entry, outcomes) for entry in listed]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(plain[0]) if plain else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(plain)
    return text.getvalue()


def _flat(entry: Entry, outcomes: Sequence[str]) -> dict[str, object]:
    row = entry.to_dict()
    shares, printed = row.pop("outcomes"), row.pop("paper") or {}
    shuffled = row.pop("shuffled") or {}
    row["adapters"] = "+".join(row["adapters"])
    row["names"] = " ".join(map(str, row["names"]))
    row["temperatures"] = " ".join(f"{t:g}" for t in row["temperatures"])
    row["chosen_by"] = " ".join(row["chosen_by"])
    row["seeds"] = json.dumps(row["seeds"])
    above = {f"shuffled_{key}": shuffled.get(key) for key in ("difference", "p")}
    paper = {f"paper_{key}": printed.get(key) for key in ("table", "low", "high")}
    return {**row, **{f"outcome_{name}": shares.get(name) for name in outcomes}, **above, **paper}


def as_json(entries: Iterable[Entry], compared: Iterable[Comparison], others: Sequence[Mapping]) -> str:
    """Everything, for programs."""
    content = {
        "entries": [entry.to_dict() for entry in entries],
        "comparisons": [asdict(test) for test in compared],
        "rows": list(others),
    }
    return json.dumps(content, indent=1) + "\n"
