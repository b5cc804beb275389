"""What the paper prints: paper_tables.toml, and which of its cells stands beside a measured one."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from results.cells import Cell
from results.rows import BASE, RANDOM
from toytransformer.merging import RULES

#: What it calls the forms of adapters that are no plain LoRA's.
FORMS = {"cat": "concat", "linear": "linear"}
LIBRARIES = {
    ("hop1", "hop2"): "two-hop",
    ("hop1", "hop2", "oracle"): "with-oracle",
    ("oracle",): "oracle-only",
    ("mixed",): "mixed",
}
#: Variants that the paper has no number for.
UNPRINTED = ("initial_a", "gauge", "relabelling")


@dataclass(frozen=True)
class Printed:
    """A number of the paper: from which table, least and most over these of its models, in percent."""

    table: str
    low: float
    high: float
    models: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "models": list(self.models)}


@cache
def paper() -> dict[str, Any]:
    """paper_tables.toml: by table its caption, rows, values in percent and the cells that are in doubt."""
    return tomllib.loads(Path(__file__).with_name("paper_tables.toml").read_text(encoding="utf-8"))


def tables() -> dict[str, dict[str, Any]]:
    """The tables by name, each with the models of its columns."""
    return {
        name: {"models": paper()["models"], **table} for name, table in paper().items() if name != "models"
    }


def called(rule: str) -> str | None:
    """What the paper calls a rule of the registry, None where it has none.

    "Uniform" and "Arrow" are families: both forms stand beside its number.
    """
    return RULES[rule].paper if rule in RULES else None


def as_printed(cell: Cell) -> dict[str, Any] | None:
    """The cell in the words of paper_tables.toml; None for what the paper has no number for.

    However it was asked: the paper's libraries were asked step by step, of single adapters it does not say.
    """
    info = cell.info
    if cell.group != "two-hop" or info.weights or info.control in (BASE, RANDOM):
        return None
    if set(UNPRINTED) & info.variant.keys():
        return None
    adapters = str(info.variant.get("adapters", "LoRA"))
    rule = called(info.rule) if adapters == "LoRA" else FORMS.get(str(info.variant.get("form")))
    if info.task.startswith("library-"):
        several = len(info.library) > 1 and rule
        return {"rule": rule, "composition": info.task} if several else None
    library = LIBRARIES.get(info.library)
    number = info.task.removeprefix("setup-")
    alone = len(info.library) == 1
    if library is None or not number.isdecimal() or not (alone or rule):
        return None
    return {
        "dataset": info.dataset,
        "layers": info.layers or "mlp",
        "adapters": adapters,
        "setup": int(number),
        "library": library,
        "rule": "alone" if alone else rule,
    }


def is_row(printed: Mapping[str, Any], table: Mapping[str, Any], row: Mapping[str, Any]) -> bool:
    """Whether a cell, in the paper's words, is that row of a table."""
    wanted = {key: value for key, value in {**table.get("fixed", {}), **row}.items() if key != "values"}
    return wanted.items() <= printed.items()


def beside(cell: Cell, experiment: str | None = None) -> Printed | None:
    """What the paper prints for such a cell, None where it has no number.

    Of the base itself where it is one of the paper's models, else the range over all of its models; from the
    table that `experiment` is named after, else from the one with most models. Libraries count step by step.
    """
    printed = as_printed(cell)
    if printed is None or (len(cell.info.library) > 1 and cell.ask != "steps" and "setup" in printed):
        return None
    known = tables()
    for name in sorted(known, key=lambda name: (name != experiment, -len(known[name]["models"]))):
        for row in known[name]["rows"]:
            if is_row(printed, known[name], row):
                values = dict(zip(known[name]["models"], row["values"], strict=True))
                own = cell.info.base.rpartition("/")[2]
                chosen = {own: values[own]} if own in values else values
                numbers = [value for value in chosen.values() if not math.isnan(value)]
                if numbers:
                    return Printed(name, min(numbers), max(numbers), tuple(chosen))
    return None


def printed(table: str, **wanted: Any) -> list[float]:
    """What the paper prints in one row of a table, over its models, in percent."""
    (row,) = [row for row in paper()[table]["rows"] if wanted.items() <= row.items()]
    return [value for value in row["values"] if not math.isnan(value)]
