"""What of a run's folder is worth keeping: its rows, and how its adapters and sweeps came out.

Adapters themselves are not kept: a run makes them again.
"""

from __future__ import annotations

from pathlib import Path

from llm_experiments.engine.store import RUN, Store
from results import files
from results.rows import RowsError


def lines(source: Path, experiment: str | None = None) -> files.Source:
    """What the finished steps of a run's folder wrote, or a folder of kept rows.

    experiment: only the steps of this one. Errors: StoreError if the folder's list of runs is damaged, where
    it has no such run, and where a single one is asked for of kept rows, which do not say.
    """
    if not (source / RUN).exists():
        if experiment is not None:
            raise RowsError(f"'{source}' is no run's folder, and does not say what is of {experiment}")
        return source
    store = Store(source, write=False)
    runs = [run for run in store.runs() if experiment in (None, run["experiment"])]
    if not runs:
        names = ", ".join(sorted({run["experiment"] for run in store.runs()})) or "none"
        raise RowsError(f"no run of {experiment or 'anything'} in '{source}': there are {names}")
    only = None if experiment is None else {step["address"] for run in runs for step in run["steps"]}
    return lambda file: b"".join(store.rows(f"{file}.jsonl", only=only))


def keep(folder: Path, name: str, out: Path) -> list[Path]:
    """Add what a run's finished steps wrote to the folder out/name.

    What that holds already stays, in front, unless the run has the same cell: so seeds and experiments
    measured later are added. Equal content gives equal bytes.
    Errors: RowsError on damaged lines, StoreError as `lines`.
    """
    kept = files.read(out / name) if files.is_folder_of_rows(out / name) else files.Measurements()
    kept.add(files.read(lines(folder)))
    return files.write(out / name, kept)
