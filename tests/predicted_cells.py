"""Measurements of a model that answers as the toy does: small cells of every experiment that is drawn."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from results.files import Measurements
from results.rows import BASE, RANDOM, CellInfo, Item, Row, items_hash
from toytransformer.compositions import OUTCOMES, Composition, Merge
from toytransformer.compositions.setups import setup
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

FACTS = 2
PAIR, TRIPLE = ("hop1", "hop2"), ("hop1", "hop2", "oracle")


def answered(
    composition: Composition,
    known: bool = True,
    *,
    base: str = "tiny",
    seeds: Sequence[int | None] = (0, 1),
    library: tuple[str, ...] | None = None,
    control: str | None = None,
    own_task: float = 1.0,
    names: int = 0,
    layers: str = "mlp",
    **variant: str | int,
) -> Measurements:
    """What a model leaves that answers as the toy does, two wordings a question, two seeds."""
    records = predict(composition, FullLimit()).records()
    asked = list(itertools.product(records, (48, 49)))
    items = [
        Item(
            id=f"{record.prompt}/{record.decode}/{template}",
            cluster=re.sub(r"\D", "", record.prompt.split()[0]) or "0",
            group=record.group,
            ask=record.decode,
            question=f"{record.prompt} in wording {template}?",
            roles={"correct": record.correct},
            extra={"template": template},
        )
        for record, template in asked
    ]
    found = Measurements(specs={composition.spec_hash: json.loads(composition.to_json())})
    for seed in seeds:
        adapters = composition_library(composition) if library is None else library
        info = CellInfo(
            domain="two-hop",
            task=composition.name,
            setting=dict(composition.setting),
            spec_hash=composition.spec_hash,
            items=items_hash(items),
            dataset="R" if known else "F",
            names=names,
            base=base,
            digest=base,
            dtype="float32",
            library=adapters,
            rule=composition.merge.rule,
            weights=composition.merge.weights if adapters else None,
            options=composition.merge.option_dict,
            layers=layers,
            seed=seed,
            variant=variant,
            control=control,
            adapters=tuple(f"adapter-{base}-{name}-{own_task}" for name in adapters),
            provenance={"git": "abc", "packages": {}},
        )
        found.cells[info.key] = info
        found.items[info.items] = tuple(items)
        found.adapters |= {
            address: {"address": address, "own_task": {"share": own_task}, "training": {}}
            for address in info.adapters
        }
        for (record, _), item in zip(asked, items, strict=True):
            scored = None
            if item.group == "two-hop" and item.ask == "direct":
                roles = {role: getattr(record, role) for role in ("correct", "bridge", "old")}
                scored = {
                    f"{role}:{name}": -record.mixture.get(name, 0.0) - 1
                    for role, name in roles.items()
                    if name
                }
            shares = {name: record.shares.get(name, 0.0) for name in OUTCOMES}
            found.rows.append(
                Row(
                    cell=info.key,
                    item=item.id,
                    answer=record.answer,
                    shares=shares,
                    text=f"{record.answer}",
                    marks={"has_form": True},
                    logprobs=scored,
                )
            )
    return found


def composition_library(composition: Composition) -> tuple[str, ...]:
    return tuple(adapter.name for adapter in composition.adapters)


def experiments(**options: Any) -> Iterator[Measurements]:
    """Small cells of every experiment that a drawing needs."""
    for known in (True, False):
        for rule in ("mean", "linear", "sum"):
            spec = setup(0, facts=FACTS, known=known, merge=Merge(rule))
            yield answered(spec, known, **options)
        for name in ("hop1", "oracle", "mixed"):
            spec = setup(0, facts=FACTS, known=known, library=(name,))
            yield answered(spec, known, control=name, **options)
        triple = setup(0, facts=FACTS, known=known, library=TRIPLE, merge=Merge("mean"))
        yield answered(triple, known, **options)
        for tenths in range(0, 11, 2):
            for pair in {(tenths / 10, 1 - tenths / 10), (1.0, tenths / 5)}:  # (1, 0) is in both
                spec = setup(0, facts=FACTS, known=known, merge=Merge("sum", pair))
                yield answered(spec, known, **options)
    summed = setup(0, facts=FACTS, known=True, merge=Merge("sum"))
    for first, second in (("lower", "upper"), ("upper", "lower")):
        order = f"hop1=mlp@{first} half, hop2=mlp@{second} half"
        yield answered(summed, layers=order, **options)
    plain = setup(0, facts=FACTS, known=True)
    yield answered(plain, seeds=(None,), library=(), control=BASE, **options)
    yield answered(plain, control=RANDOM, **options)
    bridged = setup(2, facts=FACTS, known=True, merge=Merge("mean"))
    yield answered(bridged, **options)
    yield answered(bridged, steps=1200, **options)
    fresh = setup(0, facts=FACTS, known=False, merge=Merge("linear"))
    for start, form in itertools.product(("shared", "independent"), ("as trained", "svd")):
        yield answered(fresh, False, initial_a=start, gauge=form, **options)


def together(several: Iterable[Measurements]) -> Measurements:
    """Several as one."""
    found = Measurements()
    for one in several:
        found.add(one)
    return found


def overlaps() -> Iterator[dict[str, Any]]:
    """Rows of closed-form edits."""
    for layer, name in itertools.product(range(3), ("F", "R")):
        row: dict[str, Any] = {"kind": "overlap", "source": "tiny", "dataset": name, "layer": layer}
        row |= {"metric": "raw", "facts": "alone", "chains": 20, "unrelated": 32, "leak1": 0.2, "leak2": 0.3}
        for c in ("c1", "c2"):
            row |= {f"{c}_own": 0.3, f"{c}_other": 0.25, f"{c}_low": 0.01, f"{c}_high": 0.09}
            row |= {f"toy_{c}_own": 0.4, f"toy_{c}_other": 0.3}
        yield row | {"toy_leak1": 1 / math.pi}
    yield {
        "kind": "over layers", "source": "tiny", "dataset": "F", "layers": 3, "metric": "raw",
        "facts": "alone", "c1_p": 0.01, "c2_p": 0.5,
    }  # fmt: skip
