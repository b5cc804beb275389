"""What of a run's folder is worth keeping: its rows, and how its adapters and sweeps came out.

Adapters themselves are not kept: a run makes them again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llm_experiments.engine.store import ROWS, Store

#: Parts of a regime that differ between the rows of one cell.
OF_A_ROW = ("template", "temperature", "hop1_right", "bridge_copied", "hop2_right")


def keep(folder: Path, name: str, out: Path) -> list[Path]:
    """Write out/NAME.jsonl.gz (rows), NAME-edits.jsonl.gz (where there are any) and NAME-cells.jsonl.gz.

    Rows of finished cells only. What the files hold already stays, in front, unless the folder has the same
    cell: so seeds and experiments measured later are added. Equal rows give equal bytes.
    Errors: StoreError if the folder's list of runs is damaged.
    """
    store = Store(folder, write=False)
    found = {f"{name}.jsonl.gz": map(json.loads, store.rows())}
    for file in store.row_files():
        if file != ROWS:
            found[f"{name}-{file}.gz"] = map(json.loads, store.rows(file))
    found[f"{name}-cells.jsonl.gz"] = cells(store)
    paths = []
    for file, rows in found.items():
        if lines := list(_added(out / file, rows)):
            partial = out / f".{file}"
            partial.write_bytes(gzip.compress("".join(lines).encode(), compresslevel=9, mtime=0))
            paths.append(partial.replace(out / file))
    return paths


def cells(store: Store) -> Iterator[dict[str, Any]]:
    """One row for each finished adapter (how it was trained, how it does on its own task) and each sweep."""
    names = dict.fromkeys(step["address"] for run in store.runs() for step in run["steps"])
    for name in names:
        if not store.finished(name):
            continue
        folder, seal = store.results(name), store.seal(name)
        row = {"cell": name, "label": seal["meta"]["label"], "seconds": seal["meta"]["seconds"]}
        kind = name.rpartition("-")[0]
        if kind == "adapter":
            spec = json.loads((folder / "spec.json").read_text())["spec"]
            metrics = json.loads((folder / "metrics.json").read_text())
            chosen = ("steps", "examples", "loss", "own_task")
            about = {key: spec[key] for key in ("training", "seed")}
            yield {"kind": kind, **row, **about, **{key: metrics[key] for key in chosen}}
        elif kind == "temperature":
            yield {"kind": kind, **row, **json.loads((folder / "sweep.json").read_text())}


def _added(path: Path, rows: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Lines of the file's rows of other cells, then of these rows."""
    new: dict[str, list[str]] = {}
    for row in rows:
        new.setdefault(_cell(row), []).append(json.dumps(row) + "\n")
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as old:
            yield from (line for line in old if _cell(json.loads(line)) not in new)
    for lines in new.values():
        yield from lines


def _cell(row: dict[str, Any]) -> str:
    """What the rows of one cell have in common."""
    regime = {key: value for key, value in row.get("regime", {}).items() if key not in OF_A_ROW}
    parts = [row.get(key) for key in ("cell", "source", "spec_hash", "kind", "adapters", "dataset")]
    return json.dumps([*parts, regime], sort_keys=True)
