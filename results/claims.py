"""What the paper claims (paper_claims.toml), and what measured rows say to each claim: a verdict by a rule.

A claim is about one or two rows of the paper's tables. Its cells are the measured ones that are these rows
(results.paper), of each model and, where adapters were trained in several ways, of each way. Verdicts:

    higher    second to first cell, mean difference over the clusters both have, its 95% bootstrap interval:
              reproduces above zero; does not where it excludes even the least difference that the paper
              prints (or zero, where the paper's models disagree)
    below     Wilson's 95% interval of the share: reproduces below the bound, does not above it
    overlaps  the same interval: reproduces where it meets the range that the paper prints over its models

Anything else is undecided. A claim without cells is not measured, or not testable where its domain is not
here.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from results import paper
from results.cells import RIGHT, Cell, percent
from results.recycled import Pool, difference
from results.statistics import cluster_interval
from toytransformer.merging import RULES

REPRODUCES, DOES_NOT, UNDECIDED = "reproduces", "does not", "undecided"
NOT_MEASURED, NOT_TESTABLE = "not measured", "not testable here"
#: In the order in which they are counted.
VERDICTS = (REPRODUCES, DOES_NOT, UNDECIDED, NOT_MEASURED, NOT_TESTABLE)

Entry = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """What one model says to a claim: the numbers as they are printed, and the verdict.

    way: how the adapters were trained, empty for the plain way. dagger: an adapter never learned its task.
    """

    model: str
    way: str
    ours: str
    verdict: str
    dagger: str = ""


@dataclass(frozen=True)
class Claim:
    """One claim: what the paper says, where, its numbers as they are printed, and what rows say to it."""

    says: str
    where: str
    printed: str
    findings: tuple[Finding, ...]


@cache
def claims() -> Entry:
    """paper_claims.toml: "theorem" and "claim", in the order of the page."""
    return tomllib.loads(Path(__file__).with_name("paper_claims.toml").read_text(encoding="utf-8"))


def judged(
    models: Mapping[str, Sequence[Cell]],
    domains: Collection[str],
    pools: Mapping[str, Pool] | None = None,
) -> list[Claim]:
    """Every claim with the findings of each model that has its cells.

    models: by name the cells of a model. domains: those that can be measured. pools: by name what was
    measured of recycled adapters, for claims on them.
    """
    return [_claim(entry, models, domains, pools or {}) for entry in claims()["claim"]]


def _claim(
    entry: Entry,
    models: Mapping[str, Sequence[Cell]],
    domains: Collection[str],
    pools: Mapping[str, Pool],
) -> Claim:
    numbers = Numbers.of(entry)
    findings = [
        one for name, pool in pools.items() for one in _of_pool(entry.get("pools"), name, pool, numbers)
    ]
    for model, cells in models.items():
        sides = [_ways(_cells(entry, side, cells)) for side in ("first", "second") if _is_given(entry, side)]
        for way in dict.fromkeys(way for side in sides for way in side):
            chosen = [side.get(way, side.get("")) for side in sides]
            if all(chosen):
                findings.append(_finding(entry, model, way, [c for c in chosen if c], numbers))
    if not findings:
        domain = paper.tables()[entry["table"]].get("fixed", {}).get("domain") if "table" in entry else None
        verdict = NOT_MEASURED if domain is None or domain in domains else NOT_TESTABLE
        findings = [Finding("", "", "", verdict)]
    return Claim(entry["says"], entry["where"], str(numbers), tuple(findings))


def _of_pool(asked: Entry | None, model: str, pool: Pool, numbers: Numbers) -> Iterator[Finding]:
    """What recycled adapters say to a claim on them, for each number of examples."""
    for examples in pool.examples if asked else ():
        assert asked is not None
        sides = [pool.side(examples, asked["method"], asked[side]) for side in ("first", "second")]
        if all(sides):
            first, second = (cell for several in sides for cell in several)
            found = difference(first, second)
            verdict, told = _beyond(found.difference, found.low, found.high, numbers)
            ours = f"{percent(first.mean())}% against {percent(second.mean())}%"
            yield Finding(model, f"{examples} examples", ours + told, verdict)


def _is_given(entry: Entry, side: str) -> bool:
    return side in entry or (side == "first" and "cell" in entry)


# ---- the paper's numbers ----


@dataclass(frozen=True)
class Numbers:
    """Of each of the paper's models the first row's value and the second's, and the bound; all in percent.

    counted: the outcome or mark that they count.
    """

    first: tuple[float, ...] = ()
    second: tuple[float, ...] = ()
    bound: float | None = None
    counted: str = RIGHT

    @classmethod
    def of(cls, entry: Entry) -> Numbers:
        sides = [_row(entry, name)["values"] for name in ("first", "second") if name in entry]
        readable = [values for values in zip(*sides, strict=True) if not any(map(math.isnan, values))]
        first, second = (
            tuple(values[side] for values in readable) if side < len(sides) else () for side in (0, 1)
        )
        named = [_counted(entry["table"], _row(entry, name)) for name in ("first", "second") if name in entry]
        if len(set(named)) > 1:
            raise ValueError(f"{entry['says']!r} compares {' with '.join(named)}: count one thing")
        return cls(first, second, entry.get("bound"), *named[:1])

    @property
    def differences(self) -> list[float]:
        return [first - second for first, second in zip(self.first, self.second, strict=True)]

    def __str__(self) -> str:
        bound = [f"under {self.bound:g}%"] if self.bound is not None else []
        printed = [_span(values) for values in (self.first, self.second) if values]
        return "; ".join([*bound, *([" against ".join(printed)] if printed else [])])


def _span(values: Sequence[float]) -> str:
    return "–".join(f"{value:g}" for value in sorted({min(values), max(values)})) + "%"


def _row(entry: Entry, side: str) -> Entry:
    """The one row of the claim's table. Errors: ValueError unless there is exactly one."""
    rows = [row for row in paper.tables()[entry["table"]]["rows"] if entry[side].items() <= row.items()]
    if len(rows) != 1:
        raise ValueError(f"{entry[side]} are {len(rows)} rows of {entry['table']}: name one")
    return rows[0]


def _counted(table: str, row: Entry) -> str:
    """What a row of a table counts."""
    return paper.counts(paper.tables()[table].get("fixed", {}).get("domain", ""), row)


# ---- our cells ----


def _cells(entry: Entry, side: str, cells: Iterable[Cell]) -> list[Cell]:
    if side in entry:
        return matching(cells, paper.tables()[entry["table"]], _row(entry, side))
    fields = {
        name: tuple(value) if isinstance(value, list) else value for name, value in entry["cell"].items()
    }
    return [
        cell
        for cell in cells
        if cell.info.control is None
        and not cell.info.weights
        and not set(cell.info.variant) - {"steps"}
        and all(cell.field(name) == value for name, value in fields.items())
    ]


def matching(cells: Iterable[Cell], table: Entry, row: Entry) -> list[Cell]:
    """The cells that are a row of a table, asked as the paper asked: single adapters at once."""
    found = []
    for cell in cells:
        said = paper.as_printed(cell)
        if said is not None and paper.is_row(said, table, row) and cell.ask == paper.asked(cell):
            found.append(cell)
    return found


def _ways(cells: Iterable[Cell]) -> dict[str, Cell]:
    """By way of training the cell to judge by: of a family's forms the one of products, where it is there."""
    found: dict[str, Cell] = {}
    for cell in sorted(cells, key=lambda cell: (not RULES[cell.info.rule].gauge_invariant, cell.ask)):
        found.setdefault(way(cell), cell)
    return found


def way(cell: Cell) -> str:
    """How a cell's adapters were trained, as the paper does not say it: "steps 480"; empty if plainly."""
    named = {name: value for name, value in cell.info.variant.items() if name not in ("adapters", "form")}
    return ", ".join(f"{name} {value}" for name, value in sorted(named.items()))


# ---- verdicts ----


def _finding(entry: Entry, model: str, way: str, cells: Sequence[Cell], numbers: Numbers) -> Finding:
    verdict, tail = RULE[entry["rule"]](cells, numbers)
    ours = " against ".join(_ours(cell, numbers.counted) for cell in cells)
    dagger = max(cell.dagger for cell in cells)
    return Finding(model, way, ours + tail, verdict, dagger)


def _ours(cell: Cell, of: str = RIGHT) -> str:
    share = str(cell) if of == RIGHT else f"{cell.shown(of)} {of.replace('_', ' ')}{cell.dagger}"
    return f"{share} `{cell.info.rule}`, {cell.ask}"


def _below(cells: Sequence[Cell], numbers: Numbers) -> tuple[str, str]:
    bound, (low, high) = (numbers.bound or 0.0) / 100, cells[0].interval(numbers.counted)
    return (REPRODUCES if high < bound else DOES_NOT if low > bound else UNDECIDED), ""


def _overlaps(cells: Sequence[Cell], numbers: Numbers) -> tuple[str, str]:
    low, high = cells[0].interval(numbers.counted)
    met = low <= max(numbers.first) / 100 and min(numbers.first) / 100 <= high
    return (REPRODUCES if met else DOES_NOT), ""


def _higher(cells: Sequence[Cell], numbers: Numbers) -> tuple[str, str]:
    tables = [cell.by_cluster(numbers.counted) for cell in cells]
    shared = [cluster for cluster in tables[0] if cluster in tables[1]]
    if len(shared) < 2:
        return UNDECIDED, ""
    differences = [_mean(tables[0][c]) - _mean(tables[1][c]) for c in shared]
    return _beyond(_mean(differences), *cluster_interval(differences, shared, seed=0), numbers)


def _beyond(mean: float, low: float, high: float, numbers: Numbers) -> tuple[str, str]:
    """The verdict of a difference with its interval, and how it is printed."""
    least = max(0.0, min(numbers.differences)) / 100
    verdict = REPRODUCES if low > 0 else DOES_NOT if high < least else UNDECIDED
    return verdict, f": {_signed(mean)} points [{_signed(low)}, {_signed(high)}]"


RULE: Mapping[str, Callable[[Sequence[Cell], Numbers], tuple[str, str]]] = {
    "higher": _higher,
    "below": _below,
    "overlaps": _overlaps,
}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _signed(share: float) -> str:
    text = percent(abs(share))
    return text if text == "0" else ("+" if share > 0 else "−") + text


# ---- the tables, row by row ----


@dataclass(frozen=True)
class Beside:
    """A row of a table: what tells it from the others, the paper's range, and by model our cells there.

    each: a cell as it is printed, and whether its interval lies in, above or below the paper's range.
    """

    row: str
    printed: str
    each: Mapping[str, tuple[tuple[str, str], ...]]


def row_by_row(name: str, models: Mapping[str, Sequence[Cell]]) -> list[Beside]:
    """The rows of a table that any model has a cell for."""
    table = paper.tables()[name]
    found = []
    for row in table["rows"]:
        values, of = [value for value in row["values"] if not math.isnan(value)], _counted(name, row)
        each = {
            model: tuple(
                (", ".join(filter(None, (_ours(cell, of), way(cell)))), _where(cell, values, of))
                for cell in matching(cells, table, row)
            )
            for model, cells in models.items()
        }
        if any(each.values()):
            said = ", ".join(f"{key} {value}" for key, value in row.items() if key != "values")
            found.append(Beside(said, _span(values), each))
    return found


def _where(cell: Cell, values: Sequence[float], of: str) -> str:
    low, high = cell.interval(of)
    return "below" if high < min(values) / 100 else "above" if low > max(values) / 100 else "within"


def counted(found: Iterable[Claim], model: str) -> dict[str, int]:
    """How often a model's plain findings have each verdict; a claim without one is not measured on it."""
    verdicts = []
    for claim in found:
        plain = [finding for finding in claim.findings if finding.model in (model, "")]
        verdicts.append(plain[0].verdict if plain else NOT_MEASURED)
    return {verdict: verdicts.count(verdict) for verdict in VERDICTS}
