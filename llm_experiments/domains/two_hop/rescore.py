"""Kept answers read anew: what counts as the old answer is what the base says to that very item.

The base's answer to an item is what its own row says; under a merge the same answer is `old`, behind right
answers and bridges, before other trained answers. What the world held before the edits is a role of the item
(`world_old`) and a mark of the row (`says_world_old`), not an outcome.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from llm_experiments.domains.two_hop.kept import Kept
from llm_experiments.domains.two_hop.known import KnownFacts
from results.files import Measurements
from results.rows import BASE, CellInfo, Item, Row, RowsError, canonical, items_hash
from toytransformer.compositions import OUTCOMES, Composition

#: What cells have in common whose base gives the same answers.
SAME_BASE = ("domain", "base", "digest", "dtype", "dataset", "names", "split")


@dataclass
class _Said:
    """What a base answers: by item and question as it was asked, the name that was answered."""

    answers: dict[tuple[str, str], str | None] = field(default_factory=dict)

    def name(self, item: Item, cell: CellInfo) -> str | None:
        asked = (item.id, item.question)
        if asked not in self.answers:
            raise RowsError(
                f"the base {cell.base} was not asked '{item.id}' of {cell.task} on {cell.dataset}: "
                "without its answer there is no old one"
            )
        return self.answers[asked]


def rescored(measurements: Measurements, world: KnownFacts) -> Measurements:
    """The same texts, read anew. world: what those bases know of which a cell says that they know facts.

    Errors: RowsError where a cell has no spec, its items cannot be asked again as they were, or its base was
    not asked the same items.
    """
    new = replace(measurements, cells={}, items={}, rows=[])
    rows: dict[str, list[Row]] = {}
    for row in measurements.rows:
        rows.setdefault(row.cell, []).append(row)
    scorers: dict[tuple[str, ...], Kept] = {}
    said: dict[tuple[object, ...], _Said] = {}
    knowing = {info.digest for info in measurements.cells.values() if info.setting.get("known")}
    order = sorted(measurements.cells.values(), key=lambda info: info.control != BASE)  # bases first
    done: dict[str, tuple[CellInfo, list[Row]]] = {}
    for info in order:
        kept = _kept(measurements, info, world if info.digest in knowing else None, scorers)
        items = {item.id: kept.item(item) for item in measurements.items[info.items]}
        task = items_hash(items.values())
        new.items[task] = tuple(items.values())
        cell = replace(info, items=task)
        base = said.setdefault(tuple(getattr(info, name) for name in SAME_BASE), _Said())
        done[info.key] = (cell, [])
        for row in rows.get(info.key, ()):
            item, text = items[row.item], row.text or ""
            if info.control == BASE:
                old = kept.scorer.base_answer(item, text)
            else:
                name = base.name(item, cell)
                old = None if name is None else kept.scorer.entity(name)
            scored = _row(row, cell, item, kept, old)
            if info.control == BASE:
                answer = None if scored.answer is None else kept.scorer.name(scored.answer)
                base.answers.setdefault((item.id, item.question), answer)
            done[info.key][1].append(scored)
    for key in measurements.cells:  # in the order there was
        cell, scored_rows = done[key]
        new.cells[cell.key] = cell
        new.rows += scored_rows
    new.check()
    return new


def _kept(
    measurements: Measurements, info: CellInfo, world: KnownFacts | None, scorers: dict[tuple[str, ...], Kept]
) -> Kept:
    spec = measurements.specs.get(info.spec_hash or "")
    if spec is None or info.domain != "two-hop":
        raise RowsError(f"cell {info.key} of '{info.task}' has no spec: its answers cannot be read anew")
    key = (str(info.spec_hash), str(info.dataset), str(info.names), canonical(dict(info.variant)))
    if key not in scorers:
        scorers[key] = Kept(info, Composition.from_json(json.dumps(spec)), world)
    return scorers[key]


def _row(row: Row, cell: CellInfo, item: Item, kept: Kept, old: str | None) -> Row:
    score = kept.scorer.score(item, row.text or "", old)
    logprobs = None
    if row.logprobs is not None:
        logprobs = _labels(row.logprobs, item, kept, None if old is None else kept.scorer.name(old))
    return Row(
        cell=cell.key,
        item=item.id,
        answer=score.answer,
        shares={outcome: float(outcome == score.outcome) for outcome in OUTCOMES},
        text=row.text,
        marks=score.marks,
        logprobs=logprobs,
        gates=row.gates,
    )


def _labels(logprobs: Mapping[str, float], item: Item, kept: Kept, old: str | None) -> dict[str, float]:
    """The log-probabilities, those of the base's answer and of the world's old one under their roles.

    A candidate that counted as old and is neither keeps its number as "formerly-old".
    """
    world_old = kept.words.names.get(item.roles.get("world_old", ""))
    told: dict[str, float] = {}
    for label, value in logprobs.items():
        role, _, name = label.partition(":")
        if role in ("old", "world_old", "formerly-old"):
            role = "world_old" if name == world_old else "formerly-old"
            if name == old and role != "world_old":
                continue
        told[f"{role}:{name}"] = value
    by_name = {label.partition(":")[2]: value for label, value in logprobs.items()}
    return {**told, f"old:{old}": by_name[old]} if old in by_name else told
