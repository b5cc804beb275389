"""What figures and the report are drawn from: folders of measurements as cells with their predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from figures import predictions
from figures.store import Row
from results import frame as frames
from results import recycled
from results.cells import Cell
from results.files import ENDING, is_folder_of_rows
from results.frame import Frame
from results.recycled import Pool
from results.rows import CellInfo

#: Measurements that come with the project, a folder each.
COMMITTED = Path(__file__).parents[1] / "llm_experiments" / "data"


@dataclass(frozen=True)
class Measured:
    """Cells, training seeds pooled, with predictions; the rows of these; rows on closed-form edits."""

    cells: Sequence[Cell]
    predictions: Sequence[Row]
    edits: Sequence[Row]


def committed() -> list[Path]:
    """The folders of measurements that come with the project."""
    return sorted(folder for folder in COMMITTED.iterdir() if is_folder_of_rows(folder))


def pools(folders: Iterable[Path] = ()) -> list[Pool]:
    """What folders hold of recycled adapters, where something was measured; by default the project's own."""
    several = list(folders) or sorted((COMMITTED / "pools").iterdir())
    found = [recycled.read(folder) for folder in several if (folder / f"recycled{ENDING}").is_file()]
    return [pool for pool in found if pool.cells]


def nameless(info: CellInfo) -> str:
    """A cell's key whatever its model is called: where there is a digest, that says which model it is."""
    return replace(info, base="any").key if info.digest else info.key


def with_runs(frame: Frame, runs: Iterable[Frame]) -> Frame:
    """The frame, and of each run the cells and edits it has not, whatever the model is called."""
    for run in runs:
        there = {nameless(info) for info in frame.cells.values()}
        new = {key: info for key, info in run.cells.items() if nameless(info) not in there}
        edited = {(edit.get("model"), edit.get("dataset")) for edit in frame.edits}
        more = replace(
            run,
            rows=run.rows.filter(pl.col("cell").is_in(list(new))),
            cells=new,
            edits=[edit for edit in run.edits if (edit.get("model"), edit.get("dataset")) not in edited],
        )
        frame = frames.joined([frame, more])
    return frame


def predict(
    several: Sequence[Frame], kept: Iterable[Row] = (), tick: Callable[[int, int], None] | None = None
) -> list[Row]:
    """The predictions of what was measured: those kept, and those that lack, computed with `tick(done, all)`.

    A cell without a spec, or without trained adapters, has none.
    """
    specs: dict[str, object] = {}
    for frame in several:
        hashes = (cell.info.spec_hash for cell in frame.groups() if cell.trained)
        specs |= {name: frame.specs[name] for name in hashes if name is not None and name in frame.specs}
    return predictions.complete(specs, kept, tick)


def measured(frame: Frame, rows: Sequence[Row]) -> Measured:
    """The cells of a frame joined with these predictions."""
    return Measured(frames.predicted(frame.groups(), predictions.by_hash(rows)), rows, frame.edits)
