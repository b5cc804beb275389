"""What the paper prints (paper_tables.toml), and beside which measured cells (paper_cells.toml)."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from results.cells import RIGHT, Cell
from results.rows import BASE, CellInfo
from toytransformer.merging import RULES

#: A table or an entry of the two files, as TOML has it.
Entry = dict[str, Any]


@dataclass(frozen=True)
class Printed:
    """A number of the paper: from which table, least and most over these of its models, in percent."""

    table: str
    low: float
    high: float
    models: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        return {**asdict(self), "models": list(self.models)}


@cache
def paper() -> Entry:
    """paper_tables.toml: by table its caption, rows, values in percent and the cells that are in doubt."""
    return tomllib.loads(Path(__file__).with_name("paper_tables.toml").read_text(encoding="utf-8"))


def tables() -> dict[str, Entry]:
    """The tables by name, each with the models of its columns."""
    return {
        name: {"models": paper()["models"], **table} for name, table in paper().items() if name != "models"
    }


def called(rule: str) -> str | None:
    """What the paper calls a rule of the registry, None where it has none.

    "Uniform" and "Arrow" are families: both forms stand beside its number.
    """
    return RULES[rule].paper if rule in RULES else None


@cache
def naming() -> dict[str, Entry]:
    """paper_cells.toml: by domain, what a cell of it is called in the tables."""
    return tomllib.loads(Path(__file__).with_name("paper_cells.toml").read_text(encoding="utf-8"))


def _task(info: CellInfo) -> tuple[Entry, Mapping[str, str]] | None:
    """The entry of paper_cells.toml for a cell's task, and what the task's name says by itself."""
    for task in naming()[info.domain]["tasks"] if info.domain in naming() else ():
        if named := re.fullmatch(task["name"], info.task):
            return task, named.groupdict()
    return None


def as_printed(cell: Cell) -> Entry | None:
    """The cell in the words of paper_tables.toml; None for what the paper has no number for.

    However it was asked: how the paper's libraries were asked is for `beside`.
    """
    info, known = cell.info, _task(cell.info)
    single = info.library == (info.control,)
    if known is None or info.weights or not (single or info.control in (None, BASE)):
        return None
    (task, named), domain = known, naming()[info.domain]
    if cell.group not in domain["groups"] or set(domain["unprinted"]) & info.variant.keys():
        return None
    adapters = str(info.variant.get("adapters", "LoRA"))
    rule = called(info.rule) if adapters == "LoRA" else domain["forms"].get(str(info.variant.get("form")))
    libraries = {tuple(library["adapters"]): library["called"] for library in domain["libraries"]}
    if info.control == BASE:
        rule = task.get("base")
    elif len(info.library) == 1:
        rule = task.get("single")
    said = {
        **info.setting,
        "domain": info.domain,
        "dataset": info.dataset,
        "layers": info.layers or "mlp",
        "adapters": adapters,
        "adapter": info.library[0] if len(info.library) == 1 else "",
        "library": libraries.get(info.library) if info.library else "",
        "rule": rule,
    }
    said |= dict.fromkeys(("language", "question"), domain["groups"][cell.group])
    words = {name: int(text) if text.isdecimal() else text for name, text in named.items()}
    words |= {name: said[name] for name in task["says"]}
    return None if None in words.values() else words


def asked(cell: Cell) -> str:
    """How the paper asked the base or several adapters; one, of which it does not say it, at once."""
    known = _task(cell.info)
    several = known is not None and len(cell.info.library) != 1
    return str(known[0].get("asked", cell.ask)) if known is not None and several else "direct"


def is_row(printed: Entry, table: Entry, row: Entry) -> bool:
    """Whether a cell, in the paper's words, is that row of a table, of whatever is counted there."""
    wanted = _words(table, row)
    wanted.pop("counted", None)
    return wanted.items() <= printed.items()


def _words(table: Entry, row: Entry) -> Entry:
    return {key: value for key, value in {**table.get("fixed", {}), **row}.items() if key != "values"}


def counts(domain: str, row: Entry) -> str:
    """The outcome or mark that a row of a table counts. Errors: KeyError where its domain has no word."""
    return str(naming()[domain]["counted"][row["counted"]]) if "counted" in row else RIGHT


def beside(cell: Cell, experiment: str | None = None) -> Printed | None:
    """What the paper prints for such a cell, None where it has no number.

    Of the base itself where it is one of the paper's models, else the range over all of its models; from the
    table that `experiment` is named after, else from the one with most models. Libraries count as the paper
    asked them.
    """
    printed = as_printed(cell)
    found = None if printed is None else _found(printed, cell, experiment)
    return found and found[0]


@dataclass(frozen=True)
class Likened:
    """What the paper prints of what comes nearest to a cell, and in what that differs, a few words each.

    questions: how many the paper's accuracy is of, None where it does not say.
    """

    printed: Printed
    differs: tuple[str, ...]
    questions: int | None = None


def likened(cell: Cell, of: str = RIGHT) -> Likened | None:
    """The paper's number for a cell, else that of the cell that it stands for; None where there is neither.

    of: what is counted, an outcome or a mark.
    """
    printed, known = as_printed(cell), _task(cell.info)
    if printed is None or known is None:
        return None
    nothing: Entry = {}
    for like in (nothing, known[0].get("like", nothing)):
        if found := _found({**printed, **like}, cell, None, of):
            number, table, row = found
            used = _words(table, row).keys() & like.keys()
            ours = sorted(name for name in used if like[name] != printed[name])
            own = cell.info.base.rpartition("/")[2]
            model = () if number.models == (own,) else (f"model: {own} for {_several(number.models)}",)
            data = tuple(f"{name}: {printed[name]} for {like[name]}" for name in ours)
            asked = table.get("questions")
            size = f"questions: {cell.items} for {'a number not stated' if asked is None else asked}"
            return Likened(number, (*model, *data, *(() if asked == cell.items else (size,))), asked)
    return None


def stands_beside(cell: Cell, table: Entry, row: Entry) -> str | None:
    """Whether a cell is that row of a table ("measured") or stands for it ("likened"); None where neither."""
    printed, known = as_printed(cell), _task(cell.info)
    if printed is None or known is None or (len(cell.info.library) != 1 and cell.ask != asked(cell)):
        return None
    if is_row(printed, table, row):
        return "measured"
    return "likened" if is_row({**printed, **known[0].get("like", {})}, table, row) else None


def _several(models: tuple[str, ...]) -> str:
    return models[0] + (f" and {len(models) - 1} more" if len(models) > 1 else "")


def _found(
    printed: Entry, cell: Cell, experiment: str | None, of: str = RIGHT
) -> tuple[Printed, Entry, Entry] | None:
    """The number of a cell in the paper's words, with its table and row."""
    if len(cell.info.library) != 1 and cell.ask != asked(cell):
        return None
    every = tables()
    for name in sorted(every, key=lambda name: (name != experiment, -len(every[name]["models"]))):
        table = every[name]
        for row in table["rows"]:
            if is_row(printed, table, row) and counts(cell.info.domain, row) == of:
                values = dict(zip(table["models"], row["values"], strict=True))
                own = cell.info.base.rpartition("/")[2]
                chosen = {own: values[own]} if own in values else values
                numbers = [value for value in chosen.values() if not math.isnan(value)]
                if numbers:
                    return Printed(name, min(numbers), max(numbers), tuple(chosen)), table, row
    return None


def printed(table: str, **wanted: object) -> list[float]:
    """What the paper prints in one row of a table, over its models, in percent."""
    (row,) = [row for row in paper()[table]["rows"] if wanted.items() <= row.items()]
    return [value for value in row["values"] if not math.isnan(value)]
