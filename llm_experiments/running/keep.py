"""What of a run's folder is worth keeping: its rows, and how its adapters and sweeps came out.

Adapters themselves are not kept: a run makes them again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_experiments.running.store import Store


def keep(folder: Path, name: str, out: Path) -> list[Path]:
    """Write out/NAME.jsonl.gz (rows), NAME-edits.jsonl.gz (where there are any) and NAME-cells.jsonl.gz.

    The rows of finished cells only, in the order of the runs; equal rows give equal bytes.
    Errors: StoreError if the folder's list of runs is damaged.
    """
    store = Store(folder, write=False)
    contents = {f"{name}.jsonl.gz": b"".join(store.rows())}
    for file in store.row_files():
        if file != "rows.jsonl":
            contents[f"{name}-{file}.gz"] = b"".join(store.rows(file))
    lines = [json.dumps(row, sort_keys=True) + "\n" for row in cells(store)]
    contents[f"{name}-cells.jsonl.gz"] = "".join(lines).encode()
    paths = []
    for file, content in contents.items():
        if content:
            partial = out / f".{file}"
            partial.write_bytes(gzip.compress(content, compresslevel=9, mtime=0))
            paths.append(partial.replace(out / file))
    return paths


def cells(store: Store) -> Iterator[dict[str, Any]]:
    """One row for each finished adapter (how it was trained, how it does on its own task) and each sweep."""
    names = dict.fromkeys(cell["name"] for run in store.runs() for cell in run["cells"])
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
