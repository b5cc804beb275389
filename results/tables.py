"""What measured rows say: accuracy with intervals, outcomes, paired comparisons, the paper's number beside.

A *line* is a task, a library and a merge; a *column* a dataset and the layers that are adapted; a *kind* what
was asked (a group of questions, and the way they were asked). `cells` counts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from results import paper, statistics
from results.cells import Cell
from results.rows import BASE, RANDOM

#: Fields shown in a line's name only where two lines would else be called the same.
QUIET = ("digest", "names", "split", "dtype")
LAST = ("spec_hash", "items")


@dataclass(frozen=True, eq=False)
class Entry:
    """One cell of a table: its line, column and kind, and what is looked up for it.

    shuffled: log-probability of right answers above that of the same answers dealt to other questions, None
    where candidates were not scored. paper: the paper's number, None where it has none.
    """

    cell: Cell
    kind: str
    line: str
    column: str
    shuffled: statistics.Shuffled | None
    paper: paper.Printed | None
    draws: int = 999

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values."""
        cell, info = self.cell, self.cell.info
        low, high = cell.cluster_interval(draws=self.draws) or (None, None)
        return {
            "model": info.base,
            "digest": info.digest,
            "kind": self.kind,
            "line": self.line,
            "column": self.column,
            "composition": info.task,
            "adapters": list(info.library),
            "rule": info.rule,
            "share": cell.share,
            "low": cell.low,
            "high": cell.high,
            "cluster_low": low,
            "cluster_high": high,
            "items": cell.items,
            "clusters": cell.clusters,
            "names": list(cell.names),
            "seeds": {str(seed): share for seed, share in cell.seeds.items()},
            "outcomes": dict(cell.outcomes),
            "exact": cell.mark("exact"),
            "contains": cell.mark("contains"),
            "garbled": cell.garbled,
            "entropy": cell.entropy,
            "own_task": cell.own_task,
            "undertrained": cell.undertrained,
            "temperatures": list(cell.chosen.get("temperature", ())),
            "chosen_by": list(cell.chosen.get("chosen_by", ())),
            "shuffled": None if self.shuffled is None else asdict(self.shuffled),
            "paper": None if self.paper is None else self.paper.to_dict(),
        }


@dataclass(frozen=True)
class Comparison:
    """Two lines on the same items, all training seeds together, tested by cluster (statistics.sign_flip).

    difference: share of the second minus that of the first. low, high: its bootstrap interval over clusters,
    None where there is one only. better, worse: in how many of the clusters the second has more right, or
    less. p; holm: adjusted for all comparisons of the same model and kind (Holm). undertrained: of the first
    and the second, whether an adapter did not learn its own task.
    """

    model: str
    kind: str
    column: str
    first: str
    second: str
    difference: float
    low: float | None
    high: float | None
    clusters: int
    better: int
    worse: int
    p: float
    holm: float = 1.0
    undertrained: tuple[bool, bool] = (False, False)


# ---- what cells are called ----


def kind(cell: Cell) -> str:
    """What was asked, in words."""
    return cell.group + ("" if cell.ask == "direct" else ", step by step")


def column(cell: Cell) -> str:
    """The dataset, or the domain where it has none, and the adapted layers unless they are the MLPs."""
    layers = cell.info.layers
    return (cell.info.dataset or cell.info.domain) + (f", {layers}" if layers not in (None, "mlp") else "")


def line(cell: Cell) -> str:
    """A line's name: task, library, rule and whatever else was chosen."""
    info = cell.info
    if info.control == BASE:
        return f"{info.task}: base model"
    rule = info.rule + (f" ({', '.join(f'{w:g}' for w in info.weights)})" if info.weights else "")
    library = "+".join(info.library)
    if len(info.library) > 4:
        library = f"{len(info.library)} adapters"
    if len(info.library) == 1:
        rule = "alone" if rule == "sum" else rule
    extras = ["control=random"] if info.control == RANDOM else []
    more = {**info.options, **info.variant}
    extras += [f"{name}={value}" for name, value in more.items() if value is not None]
    return f"{info.task}: {library} {rule}" + (f" [{', '.join(extras)}]" if extras else "")


def lines(cells: Sequence[Cell]) -> list[str]:
    """The cells' names, made distinct in each table by what tells the cells apart."""
    names = [line(cell) for cell in cells]
    places: dict[tuple[object, ...], list[int]] = {}
    for index, cell in enumerate(cells):
        place = (names[index], cell.info.base, column(cell), cell.group, cell.ask)
        places.setdefault(place, []).append(index)
    for same in places.values():
        if len(same) > 1:
            told = [_fields(cells[index]) for index in same]
            keys = dict.fromkeys(key for fields in told for key in fields)
            differing = [key for key in keys if len({repr(fields.get(key)) for fields in told}) > 1]
            shown = [key for key in differing if key not in LAST]
            if len({repr([fields.get(key) for key in shown]) for fields in told}) < len(told):
                shown = differing
            for index, fields in zip(same, told, strict=True):
                names[index] += f" [{', '.join(f'{key}={fields.get(key)}' for key in shown)}]"
    return names


def _fields(cell: Cell) -> dict[str, object]:
    """The fields that tell a cell apart, options, setting and variant one by one."""
    fields = cell.info.identity()
    del fields["seed"]
    nested = {name: fields.pop(name) for name in ("options", "setting", "variant")}
    last = {name: fields.pop(name) for name in (*QUIET, *LAST)}
    return {**fields, **nested["options"], **nested["setting"], **last, **nested["variant"]}


# ---- entries ----


def entries(cells: Sequence[Cell], *, experiment: str | None = None, draws: int = 999) -> list[Entry]:
    """Every cell as one Entry, in order.

    experiment: its table of the paper is looked at first for a number to stand beside ours.
    """
    return [
        Entry(
            cell, kind(cell), name, column(cell), shuffled(cell, draws), paper.beside(cell, experiment), draws
        )
        for cell, name in zip(cells, lines(cells), strict=True)
    ]


def shuffled(cell: Cell, draws: int = 999) -> statistics.Shuffled | None:
    """The shuffled-answer baseline of a cell, None where no candidates were scored."""
    if not any(label.startswith("shuffled:") for scores in cell.logprobs for label in scores or ()):
        return None
    scored = zip(cell.column("cluster"), cell.logprobs, strict=True)
    return statistics.shuffled_baseline(scored, seed=0, draws=draws)


# ---- comparisons ----


def comparisons(cells: Sequence[Cell]) -> list[Comparison]:
    """Each rule against its library's first, each task against the first one.

    Left out where the two cells do not have the same items and training seeds.
    """
    asked = [
        (cell, name) for cell, name in zip(cells, lines(cells), strict=True) if cell.info.control is None
    ]
    follows = ("options", "setting", *LAST)
    compared: dict[tuple[str, ...], Comparison] = {}
    for against in (("rule", "weights"), ("task",)):
        places: dict[str, list[tuple[Cell, str]]] = {}
        for cell, name in asked:
            places.setdefault(cell.key(*against, *follows), []).append((cell, name))
        for (reference, first), *others in places.values():
            for cell, second in others:
                if same_items(reference, cell):
                    compared.setdefault(
                        (cell.info.base, kind(cell), column(cell), first, second),
                        _comparison(reference, first, cell, second),
                    )
    families: dict[tuple[str, str], list[Comparison]] = {}
    for comparison in compared.values():
        families.setdefault((comparison.model, comparison.kind), []).append(comparison)
    adjusted = {key: iter(statistics.holm([c.p for c in family])) for key, family in families.items()}
    return [replace(c, holm=next(adjusted[c.model, c.kind])) for c in compared.values()]


def _comparison(reference: Cell, first: str, cell: Cell, second: str) -> Comparison:
    differences = cell.differences(reference)
    test = statistics.sign_flip(list(differences.values()))
    low, high = None, None
    if len(differences) > 1:
        low, high = statistics.cluster_interval(
            list(differences.values()), list(differences), seed=0, draws=999
        )
    return Comparison(
        cell.info.base,
        kind(cell),
        column(cell),
        first,
        second,
        difference=test.difference,
        low=low,
        high=high,
        clusters=test.clusters,
        better=test.first,
        worse=test.second,
        p=test.p,
        undertrained=(reference.undertrained, cell.undertrained),
    )


def same_items(first: Cell, second: Cell) -> bool:
    """Whether both have answers to the same items under the same training seeds."""
    return first.answered == second.answered


def by_model(listed: Iterable[Entry]) -> dict[tuple[str, str | None], list[Entry]]:
    """Entries by base model and its digest."""
    found: dict[tuple[str, str | None], list[Entry]] = {}
    for entry in listed:
        found.setdefault((entry.cell.info.base, entry.cell.info.digest), []).append(entry)
    return found
