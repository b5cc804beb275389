"""Measured rows as cells: how often one merged model gave which answer, folded as the rows are read.

A cell is a model, a composition, a library, a merge, a data set and how one group of its questions was asked,
for one training seed. Rows are read one at a time, so that a run of any size fits in memory.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from results.statistics import cluster_interval, triplet, wilson
from toytransformer.compositions import OUTCOMES, Record

Row = dict[str, Any]

#: Measured rows that are committed.
COMMITTED = Path(__file__).parents[2] / "llm_experiments" / "data"
#: Keys of a regime that are fields of a cell, and those that belong to single rows or tell no cells apart.
_OWN = ("seed", "dataset", "layers", "control", "model")
_ROWS = (
    "template",
    "temperature",
    "hop1_right",
    "bridge_copied",
    "hop2_right",
    "names_seed",
    "split",
    "dtype",
)
#: Roles whose log-probabilities are kept.
SCORED = ("correct", "bridge", "old")


class RowsError(ValueError):
    """Rows that cannot be read or joined; the message says which and what to do."""


@dataclass(frozen=True)
class Place:
    """What tells a cell from others, its training seed apart; variant: whatever else its regime says."""

    model: str
    digest: str | None
    composition: str
    setting: tuple[tuple[str, Any], ...]
    spec_hash: str
    library: tuple[str, ...]
    rule: str
    weights: tuple[float, ...] | None
    options: tuple[tuple[str, Any], ...]
    dataset: str | None
    layers: str | None
    control: str | None
    variant: tuple[tuple[str, Any], ...]
    group: str
    decode: str

    @property
    def known(self) -> bool:
        """Whether the base has old answers to the tested facts."""
        return bool(dict(self.setting)["known"])

    @property
    def asked(self) -> str:
        return f"{self.group}/{self.decode}"


@dataclass(frozen=True)
class Cell:
    """Shares of the five outcomes in one cell, over training seeds once `pooled`.

    items: questions, each in each of its wordings. chains: how many distinct chains they ask about. logprobs:
    mean log-probability by role and chain. toy: the prediction for the same questions ("shares", "margin",
    "outputs", "tied", ..), None where there is none.
    """

    place: Place
    seeds: tuple[int | None, ...]
    items: int
    chains: int
    shares: Mapping[str, float]
    logprobs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    toy: Mapping[str, Any] | None = None

    def interval(self, outcome: str = "correct") -> tuple[float, float]:
        """Wilson's 95% interval over the items of one seed."""
        return wilson(min(self.shares[outcome], 1.0) * self.items, self.items)

    def logprob(self, role: str) -> tuple[float, float, float]:
        """Mean log-probability of a role's answer and its 95% bootstrap interval over chains."""
        values = list(self.logprobs[role].values())
        return math.fsum(values) / len(values), *cluster_interval(
            values, range(len(values)), seed=0, draws=999
        )


class _Tally:
    """The rows of one cell as they come; a row that two runs share counts once."""

    def __init__(self) -> None:
        self.seen: dict[tuple, str | None] = {}
        self.counts: dict[str, float] = dict.fromkeys(OUTCOMES, 0.0)
        self.logprobs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def add(self, record: Record) -> None:
        item = (record.prompt, record.regime.get("template"))
        if item in self.seen:
            if self.seen[item] == record.text:
                return
            raise RowsError(
                f"'{record.prompt}' (template {item[1]}) of {record.composition} by {record.rule} on "
                f"{record.source} has two answers: give runs that agree in all they share"
            )
        self.seen[item] = record.text
        for outcome, share in record.shares.items():
            self.counts[outcome] += share
        for label, value in (record.logprobs or {}).items():
            role = label.partition(":")[0]
            if role in SCORED:
                self.logprobs[role][triplet(record)].append(value)

    def cell(self, place: Place, seed: int | None) -> Cell:
        items = len(self.seen)
        return Cell(
            place,
            (seed,),
            items,
            len({prompt for prompt, _ in self.seen}),
            {outcome: count / items for outcome, count in self.counts.items()},
            {role: {t: _mean(v) for t, v in table.items()} for role, table in self.logprobs.items()},
        )


def cells(records: Iterable[Record], watch: Callable[[Place, Record], Any] | None = None) -> list[Cell]:
    """The cells of records, as they first appear; `watch` sees every record with its place.

    Errors: RowsError on a question with two answers.
    """
    tallies: dict[tuple[Place, int | None], _Tally] = {}
    for record in records:
        place = _place(record)
        tallies.setdefault((place, record.regime.get("seed")), _Tally()).add(record)
        if watch:
            watch(place, record)
    return [tally.cell(*key) for key, tally in tallies.items()]


def _place(record: Record) -> Place:
    regime = record.regime
    variant = sorted((k, v) for k, v in regime.items() if k not in (*_OWN, *_ROWS) and v is not None)
    return Place(
        record.source,
        regime.get("model"),
        record.composition,
        tuple(sorted(record.setting.items())),
        record.spec_hash,
        record.adapters,
        record.rule,
        record.weights,
        tuple(sorted(record.options.items())),
        regime.get("dataset"),
        regime.get("layers"),
        regime.get("control"),
        tuple(variant),
        record.group,
        record.decode,
    )


@cache
def nameless(place: Place) -> Place:
    """The place whatever its model is called: where there is a digest, that says which model it is."""
    return replace(place, model="") if place.digest else place


def pooled(found: Iterable[Cell]) -> list[Cell]:
    """Cells of several training seeds as one: means over seeds, the items of one seed."""
    places: dict[Place, list[Cell]] = {}
    for cell in found:
        places.setdefault(cell.place, []).append(cell)
    return [_over_seeds(several) for several in places.values()]


def _over_seeds(several: Sequence[Cell]) -> Cell:
    if sizes := {cell.items for cell in several if cell.items != several[0].items}:
        place = several[0].place
        raise RowsError(
            f"{place.composition} by {place.rule} on {place.model} has {several[0].items} items under one "
            f"seed and {min(sizes)} under another: finish the run first"
        )
    roles = several[0].logprobs
    return replace(
        several[0],
        seeds=tuple(seed for cell in several for seed in cell.seeds),
        shares={outcome: _mean(cell.shares[outcome] for cell in several) for outcome in OUTCOMES},
        logprobs={r: {t: _mean(c.logprobs[r][t] for c in several) for t in roles[r]} for r in roles},
    )


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return math.fsum(values) / len(values)


# --- reading ----------------------------------------------------------------------------------------------


def read(
    paths: Sequence[Path], watch: Callable[[Place, Record], Any] | None = None
) -> tuple[list[Cell], list[Row]]:
    """The cells and the rows on closed-form edits in these run folders and files (.jsonl, .jsonl.gz).

    watch: sees every record with its place as it is read. Errors: RowsError naming what cannot be read.
    """
    edits: list[Row] = []

    def records() -> Iterator[Record]:
        for path in paths:
            for number, line in enumerate(_lines(path), start=1):
                try:
                    row = json.loads(line)
                    if "kind" not in row:
                        yield Record(**row)
                        continue
                except (ValueError, TypeError) as error:
                    raise RowsError(f"'{path}', row {number}, is no record: {error}") from error
                edits.append(row)

    return cells(records(), watch), edits


def committed() -> list[Path]:
    """The files of measured rows that come with the project."""
    return sorted(COMMITTED.glob("*.jsonl.gz"))


def _lines(path: Path) -> Iterator[bytes]:
    try:
        if path.is_dir():
            from llm_experiments.engine.store import Store

            store = Store(path, write=False)
            for name in store.row_files():
                yield from store.rows(name)
        else:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                yield from file
    except (OSError, EOFError, zlib.error) as error:
        raise RowsError(
            f"'{path}' cannot be read ({error}): give a run's folder or its rows.jsonl.gz"
        ) from error
