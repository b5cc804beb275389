"""A folder of measurements: what a run writes, and what is kept of it.

    cells.jsonl.gz     one CellInfo a line
    rows.jsonl.gz      one Row a line, those of a cell together
    items.jsonl.gz     one Item a line, with "task": the items_hash of the task they belong to
    specs.jsonl.gz     one composition a line, {"spec_hash", "spec"}: what predicts a cell
    adapters.jsonl.gz  how each adapter came out: {"address", "own_task", "loss", ..}
    sweeps.jsonl.gz    what was chosen on development items: {"address", "chosen", "sweep"}
    edits.jsonl.gz     what closed-form edits measure; their first lines say where they come from
    merges.jsonl.gz    what was predicted of merges and what they then lost, and where these lines come from
    recycled.jsonl.gz  which adapters of a pool were taken, and what they answered, fitted on examples

A file that is not there has no lines. Lines that a folder has twice (an item that several cells asked) count
once. Equal content gives equal bytes.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from results.rows import CellInfo, Item, Row, RowsError, items_hash
from toytransformer.compositions.io import read_plain, replacing

#: The files of a folder, without their ending.
FILES = ("cells", "rows", "items", "specs", "adapters", "sweeps", "edits", "merges", "recycled")
#: Those that are kept line by line as they were written, without an address.
PLAIN = ("edits", "merges", "recycled")
ENDING = ".jsonl.gz"

Given = TypeVar("Given")
T = TypeVar("T")
Line = dict[str, Any]
#: A folder, or what gives the text of one of FILES, b"" where there is none.
Source = Path | Callable[[str], bytes]


@dataclass
class Measurements:
    """What a folder holds.

    cells: by key. items: by hash of the task's items, in their order. rows: in the order of their cells.
    specs: the spec of each composition by its hash, as parsed JSON. adapters, sweeps: lines by the address of
    what was trained or swept. edits, merges, recycled: lines as written.
    """

    cells: dict[str, CellInfo] = field(default_factory=dict)
    items: dict[str, tuple[Item, ...]] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    specs: dict[str, object] = field(default_factory=dict)
    adapters: dict[str, Line] = field(default_factory=dict)
    sweeps: dict[str, Line] = field(default_factory=dict)
    edits: list[Line] = field(default_factory=list)
    merges: list[Line] = field(default_factory=list)
    recycled: list[Line] = field(default_factory=list)

    def add(self, later: Measurements) -> None:
        """Take up what another folder holds; its rows take the place of those of the same cell."""
        self.rows = [row for row in self.rows if row.cell not in later.cells] + later.rows
        for name in PLAIN:
            new = getattr(later, name)
            setattr(self, name, [line for line in getattr(self, name) if line not in new] + new)
        for name in ("cells", "items", "specs", "adapters", "sweeps"):
            getattr(self, name).update(getattr(later, name))

    def check(self) -> None:
        """Errors: RowsError where a row has no cell or no item, a cell no items, or an item two answers."""
        ids = {task: {item.id for item in items} for task, items in self.items.items()}
        if lone := [info for info in self.cells.values() if info.items not in ids]:
            raise RowsError(f"the items {lone[0].items} of a cell of '{lone[0].task}' are missing")
        seen: set[tuple[str, str]] = set()
        for row in self.rows:
            if row.cell not in self.cells:
                raise RowsError(f"a row on '{row.item}' is of cell {row.cell}, which is missing")
            if row.item not in ids[self.cells[row.cell].items]:
                raise RowsError(f"cell {row.cell} has an answer to '{row.item}', which is none of its items")
            if (row.cell, row.item) in seen:
                raise RowsError(f"cell {row.cell} has two answers to '{row.item}': give runs that agree")
            seen.add((row.cell, row.item))

    def lines(self, file: str) -> Iterator[str]:
        """The lines of one of FILES, as they are written."""
        if file in ("cells", "rows"):
            lines = self.cells.values() if file == "cells" else self.rows
            yield from (line.to_json() + "\n" for line in lines)
        elif file == "items":
            for task, items in self.items.items():
                for item in items:
                    yield json.dumps({"task": task, **json.loads(item.to_json())}) + "\n"
        elif file == "specs":
            for spec_hash, spec in self.specs.items():
                yield json.dumps({"spec_hash": spec_hash, "spec": spec}) + "\n"
        else:
            several = getattr(self, file)
            yield from (json.dumps(line) + "\n" for line in (several if file in PLAIN else several.values()))


def content(source: Source, file: str) -> bytes:
    """The text of one of FILES, b"" where it is not there. Errors: RowsError on damage."""
    if callable(source):
        return source(file)
    path = Path(source) / f"{file}{ENDING}"
    try:
        return gzip.decompress(read_plain(path))
    except FileNotFoundError:
        return b""
    except (OSError, EOFError, zlib.error) as error:
        raise RowsError(
            f"'{path}' cannot be read ({error}): give a run's folder, or one of kept rows"
        ) from error


def read(source: Source, files: Sequence[str] = FILES) -> Measurements:
    """What a folder holds, of these files only.

    Errors: RowsError naming a line that is none, on a folder without measurements, and as
    Measurements.check().
    """
    if not callable(source) and not Path(source).is_dir():
        wrong = "is a file" if Path(source).exists() else "is not there"
        raise RowsError(f"'{source}' {wrong}: give a run's folder, or one of kept rows")
    if not callable(source) and not is_folder_of_rows(source):
        raise RowsError(
            f"'{source}' holds no measurements: give a run's folder, or one of kept rows; what earlier code "
            "wrote is carried over by `python -m llm_experiments migrate`"
        )
    measurements = Measurements()
    for file in files:
        if file == "items":
            measurements.items = _items(source)
            continue
        for number, line in _lines(source, file):
            if file == "cells":
                info = _parsed(source, file, number, CellInfo.from_json, line)
                measurements.cells[info.key] = info
            elif file == "rows":
                measurements.rows.append(_parsed(source, file, number, Row.from_json, line))
            else:
                row = _parsed(source, file, number, _object, line)
                if file in PLAIN:
                    getattr(measurements, file).append(row)
                elif file == "specs":
                    measurements.specs[row["spec_hash"]] = row["spec"]
                else:
                    getattr(measurements, file)[row["address"]] = row
    if {"cells", "rows", "items"} <= set(files):
        measurements.check()
    return measurements


def _items(source: Source) -> dict[str, tuple[Item, ...]]:
    """The items of each task, by their hash. Errors: RowsError where they have another."""
    tasks: dict[str, dict[str, Item]] = {}
    for number, line in _lines(source, "items"):
        parsed = _parsed(source, "items", number, _object, line)
        task = parsed.pop("task", None)
        item = _parsed(source, "items", number, Item.from_dict, parsed)
        tasks.setdefault(task, {})[item.id] = item
    for task, items in tasks.items():
        if items_hash(items.values()) != task:
            raise RowsError(
                f"{_named(source, 'items')}: the items called {task} have another hash, "
                f"{items_hash(items.values())}: the file was changed or is cut short"
            )
    return {task: tuple(items.values()) for task, items in tasks.items()}


def write(folder: Path, measurements: Measurements) -> list[Path]:
    """Write the files that have lines, each all or nothing; others are removed. Equal content, equal bytes.

    Errors: RowsError on what Measurements.check() refuses.
    """
    measurements.check()
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for file in FILES:
        path = folder / f"{file}{ENDING}"
        text = "".join(measurements.lines(file))
        if not text:
            path.unlink(missing_ok=True)
            continue
        with replacing(path) as partial:
            partial.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))
        paths.append(path)
    return paths


def is_folder_of_rows(folder: Path) -> bool:
    """Whether there are measurements in the folder."""
    return any((Path(folder) / f"{file}{ENDING}").is_file() for file in FILES if file != "rows")


def folders_of_rows(root: Path) -> list[Path]:
    """Every folder of measurements in a folder, at any depth, by name."""
    return sorted({path.parent for path in Path(root).rglob(f"cells{ENDING}")})


def _lines(source: Source, file: str) -> Iterator[tuple[int, bytes]]:
    yield from enumerate(content(source, file).splitlines(), start=1)


def _parsed(source: Source, file: str, number: int, parse: Callable[[Given], T], line: Given) -> T:
    try:
        return parse(line)
    except ValueError as error:
        raise RowsError(f"{_named(source, file)}, line {number}: {error}") from error


def _object(line: bytes) -> Line:
    parsed = json.loads(line)
    if not isinstance(parsed, dict):
        raise ValueError(f"{parsed!r} is no JSON object")
    return parsed


def _named(source: Source, file: str) -> str:
    return f"{file}{ENDING}" if callable(source) else f"'{Path(source) / file}{ENDING}'"
