"""Measured rows as one frame, and its cells.

    frame = frame.read(folder, ..)   runs and kept folders, as one
    frame.rows                       polars: a line an answer, see COLUMNS
    frame.cells, .items, .specs      CellInfo by key; Item by (task, id); specs by hash
    frame.wide()                     the rows with the fields of their cells beside them
    frame.groups()                   list[Cell]: one library under one merge, asked one group of questions
                                     in one way, over training seeds and draws of names; pooled=False: apart
    select(cells, task="sums", rule="mean", ask="steps", ..)        those whose fields are these
    predicted(cells, predictions)    the same cells with what the toy says of them, joined by spec hash

A `Cell` (results.cells) is what tables, pages and figures count. `cell.info` has the fields that tell it from
others (`base`, `task`, `library`, `rule`, `weights`, `dataset`, `layers`, `control`, `variant`, ..);
`cell.group` and `cell.ask` say what was asked; `cell.share`, `cell.outcomes`, `cell.interval()` and
`cell.mark(name)` what came out; `cell.own_task` how its adapters do alone; `cell.prediction` what the toy
says. Nothing is parsed out of a name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import polars as pl

from toytransformer import interrupts

interrupts.again_at_once()  # Polars takes Ctrl-C when it is imported

from results import files
from results.cells import Cell
from results.files import Line
from results.rows import VERSION, CellInfo, Item, RowsError, content_hash

#: Columns of a frame, beside one "shares.<outcome>" for each outcome and one "marks.<mark>" for each mark.
#: items: hash of the task's items. logprobs, gates: JSON. place: number of what cells have in common but for
#: their training seed and their draw of names.
COLUMNS = (
    *("cell", "item", "items", "cluster", "group", "ask", "seed", "place"),
    *("answer", "text", "logprobs", "gates"),
)

#: What the toy says of a composition: by "group/ask" any mapping with "shares".
Predictions = Mapping[str, Mapping[str, Mapping[str, object]]]


@dataclass(frozen=True, eq=False)
class Frame:
    """Measurements of one or several folders, joined."""

    rows: pl.DataFrame = field(repr=False)
    cells: Mapping[str, CellInfo] = field(repr=False)
    items: Mapping[tuple[str, str], Item] = field(repr=False)
    specs: Mapping[str, object] = field(default_factory=dict, repr=False)
    adapters: Mapping[str, Line] = field(default_factory=dict, repr=False)
    sweeps: Mapping[str, Line] = field(default_factory=dict, repr=False)
    edits: Sequence[Line] = field(default=(), repr=False)

    @property
    def outcomes(self) -> tuple[str, ...]:
        """What answers can be, in the order of the rows."""
        return _named(self.rows, "shares.")

    @property
    def marks(self) -> tuple[str, ...]:
        """What scorers say besides."""
        return _named(self.rows, "marks.")

    def wide(self) -> pl.DataFrame:
        """The rows with the fields of their cells beside them; mappings and tuples as JSON."""
        plain = [
            {k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in info.to_dict().items()}
            for info in self.cells.values()
        ]
        cells = pl.DataFrame(plain, infer_schema_length=None).rename({"key": "cell"}).drop("items", "seed")
        return self.rows.join(cells, on="cell", how="left", maintain_order="left")

    def groups(self, *, pooled: bool = True) -> list[Cell]:
        """The cells in the order of their first rows; pooled: over training seeds and draws of names."""
        by = ["place", "group", "ask"] if pooled else ["cell", "group", "ask"]
        rows = self._numbers.with_columns(key=pl.col("cell"), where=pl.col("place"))
        parts = rows.group_by(by, maintain_order=True).agg("number", "key")
        return [
            Cell(
                infos=tuple(self.cells[key] for key in dict.fromkeys(keys)),
                group=group,
                ask=ask,
                frame=self,
                index=np.array(numbers),
            )
            for _, group, ask, numbers, keys in parts.iter_rows()
        ]

    @cached_property
    def _numbers(self) -> pl.DataFrame:
        return self.rows.select("cell", "place", "group", "ask").with_row_index("number")

    @cached_property
    def columns(self) -> Mapping[str, list[object]]:
        """Every column as a list, converted when it is first asked for."""
        return _Columns(self.rows)

    def own_task(self, info: CellInfo) -> float | None:
        """The least share right on its own task of an adapter of the cell, None where nobody says."""
        lines = (self.adapters.get(address) for address in info.adapters)
        shares = [line["own_task"]["share"] for line in lines if line and line.get("own_task")]
        return min((share for share in shares if share is not None), default=None)


class _Columns(dict[str, list[object]]):
    def __init__(self, rows: pl.DataFrame):
        super().__init__()
        self.rows = rows

    def __missing__(self, name: str) -> list[object]:
        self[name] = self.rows[name].to_list()
        return self[name]


def _named(rows: pl.DataFrame, start: str) -> tuple[str, ...]:
    return tuple(name.removeprefix(start) for name in rows.columns if name.startswith(start))


# --- reading ------------------------------------------------------------------------------------------------


def read(*folders: files.Source) -> Frame:
    """The measurements of folders as one frame; a cell that several have counts once.

    Errors: RowsError naming what cannot be read, a row without cell or item, and a cell whose answers differ
    between folders.
    """
    if not folders:
        raise RowsError("no folder: give a run's folder, or one of kept rows")
    frames = [_read(folder) for folder in folders]
    return frames[0] if len(frames) == 1 else joined(frames)


def of(measurements: files.Measurements) -> Frame:
    """Measurements as a frame. Errors: as Measurements.check()."""
    measurements.check()
    text = "".join(measurements.lines("rows")).encode()
    return _frame(measurements, _parsed(text))


def _read(source: files.Source) -> Frame:
    measurements = files.read(source, [file for file in files.FILES if file != "rows"])
    try:
        return _frame(measurements, _parsed(files.content(source, "rows")))
    except (pl.exceptions.PolarsError, RowsError) as error:
        files.read(source)  # names the line that is wrong
        raise RowsError(f"the rows of '{source}' cannot be read: {error}") from error


def _parsed(text: bytes) -> pl.DataFrame:
    """Rows as they are in a file, one column a field."""
    if not text:
        texts = dict.fromkeys(("cell", "item", "answer", "text", "logprobs", "gates"), pl.String)
        return pl.DataFrame(schema={"version": pl.Int64, **texts})
    # A line without gates has no such field, and polars takes no override of a column that is not there.
    nested = [name for name in ("logprobs", "gates") if f'"{name}": '.encode() in text]
    rows = pl.read_ndjson(text, infer_schema_length=None, schema_overrides=dict.fromkeys(nested, pl.String))
    return rows if "gates" in nested else rows.with_columns(gates=pl.lit(None, pl.String))


def _frame(measurements: files.Measurements, rows: pl.DataFrame) -> Frame:
    lacking = {"version", "cell", "item", "answer", "text", "logprobs"} - set(rows.columns)
    if lacking or (rows["version"] != VERSION).any():
        raise RowsError(f"rows have no {min(lacking, default='version that this code reads')}")
    for name in ("shares", "marks"):
        if isinstance(rows.schema.get(name), pl.Struct):
            rows = rows.with_columns(pl.col(name).name.prefix_fields(f"{name}.")).unnest(name)
        elif name in rows.columns:
            rows = rows.drop(name)
    strings = [pl.col(name).cast(pl.String) for name in ("answer", "text", "logprobs", "gates")]
    cells = pl.DataFrame(
        {
            "cell": list(measurements.cells),
            "items": [info.items for info in measurements.cells.values()],
            "seed": [info.seed for info in measurements.cells.values()],
            "place": list(places(measurements.cells, measurements.items).values()),
        },
        schema={"cell": pl.String, "items": pl.String, "seed": pl.Int64, "place": pl.Int64},
    )
    by_id = {(task, item.id): item for task, items in measurements.items.items() for item in items}
    items = pl.DataFrame(
        {
            "items": [task for task, _ in by_id],
            "item": [item for _, item in by_id],
            **{
                name: [getattr(item, name) for item in by_id.values()] for name in ("cluster", "group", "ask")
            },
        },
        schema=dict.fromkeys(("items", "item", "cluster", "group", "ask"), pl.String),
    )
    rows = rows.drop("version").with_columns(strings)
    rows = rows.join(cells, on="cell", how="left", maintain_order="left")
    rows = rows.join(items, on=["items", "item"], how="left", maintain_order="left")
    _check(rows)
    shares = [name for name in rows.columns if name.startswith(("shares.", "marks."))]
    return Frame(
        rows.select(*COLUMNS, *shares),
        measurements.cells,
        by_id,
        measurements.specs,
        measurements.adapters,
        measurements.sweeps,
        measurements.edits,
    )


def _check(rows: pl.DataFrame) -> None:
    if rows["place"].has_nulls():
        raise RowsError("a row is of a cell that is missing")
    if rows["group"].has_nulls():
        raise RowsError("a row answers what is none of its cell's items")
    if rows.select("cell", "item").is_duplicated().any():
        raise RowsError("a cell has two answers to one item")
    shares = [name for name in rows.columns if name.startswith("shares.")]
    if len(rows) and not ((rows.select(pl.sum_horizontal(shares)).to_series() - 1).abs() < 1e-9).all():
        raise RowsError("the shares of a row do not sum to 1")


def places(cells: Mapping[str, CellInfo], items: Mapping[str, Iterable[Item]]) -> dict[str, int]:
    """A number for each cell; cells that differ in training seed or draw of names alone have the same.

    items: of each task. Draws of names ask the same items, by their ids, in other texts; of one draw the
    texts have to be the same too.
    """
    ids = {task: content_hash([item.id for item in asked]) for task, asked in items.items()}
    numbers: dict[tuple[object, ...], int] = {}
    texts: dict[tuple[object, ...], str] = {}
    numbered = {}
    for key, info in cells.items():
        where = (ids[info.items], *_place(info))
        if texts.setdefault((where, info.names), info.items) != info.items:
            where = (info.items, *where)
        numbered[key] = numbers.setdefault(where, len(numbers))
    return numbered


def _place(info: CellInfo) -> tuple[object, ...]:
    """What cells of several training seeds and draws of names have in common, as something to be a key."""
    own = ("seed", "names", "items")
    return tuple((name, _key(value)) for name, value in info.identity().items() if name not in own)


def _key(value: object) -> object:
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value


def joined(frames: Sequence[Frame]) -> Frame:
    """Several frames as one. Errors: RowsError on a cell whose answers are not the same in all of them."""
    cells: dict[str, CellInfo] = {}
    parts: list[pl.DataFrame] = []
    for frame in frames:
        again = [key for key in frame.cells if key in cells]
        if again:
            before = pl.concat(parts, how="diagonal").filter(pl.col("cell").is_in(again))
            both = before.join(frame.rows, on=["cell", "item"], how="inner", suffix=" again")
            if (wrong := both.filter(pl.col("text").ne_missing(pl.col("text again")))).height:
                info = cells[wrong["cell"][0]]
                raise RowsError(
                    f"'{wrong['item'][0]}' of {info.task} by {info.rule} on {info.base} has two answers: "
                    "give folders that agree in all they share"
                )
        parts.append(frame.rows.filter(~pl.col("cell").is_in(again)))
        cells |= {key: info for key, info in frame.cells.items() if key not in cells}
    items = {key: item for frame in frames for key, item in frame.items.items()}
    tasks: dict[str, list[Item]] = {}
    for (task, _), item in items.items():
        tasks.setdefault(task, []).append(item)
    numbers = places(cells, tasks)
    rows = pl.concat(parts, how="diagonal").with_columns(
        pl.col("cell").replace_strict(numbers).alias("place")
    )
    return Frame(
        rows,
        cells,
        items,
        {key: spec for frame in frames for key, spec in frame.specs.items()},
        {key: line for frame in frames for key, line in frame.adapters.items()},
        {key: line for frame in frames for key, line in frame.sweeps.items()},
        [line for frame in frames for line in frame.edits],
    )


# --- choosing and predicting --------------------------------------------------------------------------------


def select(cells: Iterable[Cell], **wanted: object) -> list[Cell]:
    """The cells whose fields are these: of CellInfo, `group` or `ask`, each as a whole (variant={}: plain).

    Errors: AttributeError on a name that is no field.
    """
    plain = {name: tuple(value) if isinstance(value, list) else value for name, value in wanted.items()}
    return [cell for cell in cells if all(cell.field(name) == value for name, value in plain.items())]


def predicted(cells: Iterable[Cell], predictions: Predictions) -> list[Cell]:
    """The cells with their predictions, by spec hash and "group/ask"; None where there is none.

    The toy speaks of trained adapters that are merged: base and random adapters have no prediction.
    """
    paired = []
    for cell in cells:
        prediction = (
            predictions.get(cell.info.spec_hash or "", {}).get(cell.question_kind) if cell.trained else None
        )
        paired.append(replace(cell, prediction=prediction))
    return paired
