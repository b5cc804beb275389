"""Small measurements for tests: a cell from a word of marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from results import frame
from results.cells import Cell
from results.files import Measurements
from results.rows import CellInfo, Item, Row, items_hash

PAIR = ("hop1", "hop2")
OUTCOMES = {"1": "correct", "b": "bridge", "o": "old", "e": "edited", ".": "other"}


def items(
    count: int, group: str = "two-hop", ask: str = "steps", wordings: Sequence[int] = (48,)
) -> list[Item]:
    """Items of `count` chains in these wordings, chain by chain."""
    asked = "R1 R2" if group == "two-hop" else "R1"
    return [
        Item(
            id=f"x{i} {asked}/{ask}/{k}",
            cluster=str(i),
            group=group,
            ask=ask,
            question=f"Question {i} in wording {k}?",
            target=f"z{i}.",
            roles={"correct": f"z{i}", "bridge": f"y{i}", "world_old": f"w{i}"},
            extra={"template": k, "prompt": f"x{i} {asked}"},
        )
        for i in range(1, count + 1)
        for k in wordings
    ]


def measured(
    right: str,
    *,
    group: str = "two-hop",
    ask: str = "steps",
    wordings: Sequence[int] = (48,),
    logprobs: Sequence[Mapping[str, float] | None] | None = None,
    marks: Mapping[str, Sequence[Any]] | None = None,
    own_task: float | None = None,
    **fields: Any,
) -> Measurements:
    """One cell, a row for each character of `right`: "1" is right, "b", "o", "e", "." another outcome."""
    asked = items(len(right) // len(wordings), group, ask, wordings)
    given = {
        "domain": "two-hop",
        "task": "setup-2",
        "setting": {"facts": len(asked)},
        "spec_hash": "h",
        "items": items_hash(asked),
        "dataset": "R",
        "names": 0,
        "base": "some/model",
        "digest": "0123",
        "dtype": "float32",
        "library": PAIR,
        "rule": "mean",
        "layers": "mlp",
        "seed": 0,
        **fields,
    }
    adapters = {}
    if own_task is not None:
        given["adapters"] = tuple(f"adapter-{given['task']}-{n}" for n, _ in enumerate(given["library"]))
        adapters = {name: {"address": name, "own_task": {"share": own_task}} for name in given["adapters"]}
    info = CellInfo(**given)
    outcomes = [OUTCOMES[mark] for mark in right]
    told = marks or {
        "exact": [outcome == "correct" for outcome in outcomes],
        "contains": [outcome in ("correct", "bridge") for outcome in outcomes],
    }
    rows = [
        Row(
            cell=info.key,
            item=item.id,
            answer=item.roles["correct"] if outcome == "correct" else None,
            shares={name: float(name == outcome) for name in OUTCOMES.values()},
            text=f"{outcome} {item.id}",
            marks={name: values[number] for name, values in told.items()},
            logprobs=None if logprobs is None else logprobs[number],
        )
        for number, (item, outcome) in enumerate(zip(asked, outcomes, strict=True))
    ]
    return Measurements({info.key: info}, {info.items: tuple(asked)}, rows, adapters=adapters)


def together(several: Iterable[Measurements]) -> Measurements:
    """Several as one."""
    found = Measurements()
    for one in several:
        found.add(one)
    return found


def cells(*several: Measurements, pooled: bool = True) -> list[Cell]:
    """Their cells."""
    return frame.of(together(several)).groups(pooled=pooled)
