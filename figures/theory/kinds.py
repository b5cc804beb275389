"""Rows of figure kinds: where a direct question moves from the bridge entity to a place."""

from __future__ import annotations

import functools

import numpy as np

from figures.store import Row, described, short
from figures.theory import Computation
from toytransformer.bases import ExactBase
from toytransformer.compositions import catalogue
from toytransformer.prediction import predict
from toytransformer.readout import Typed
from toytransformer.regimes import FullLimit
from toytransformer.toy import Toy
from toytransformer.typed import fresh_threshold, trained_threshold

#: How much answers of one kind have in common, in the predictions and at most.
TS = tuple(round(0.05 * k, 2) for k in range(20))
#: Numbers of facts along a curve of thresholds.
SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128, 256, 512, 1024)


def _leads(facts: int) -> list[Row]:
    """By how much the best place leads the bridge entity, by prediction, and who answers, at each t."""
    composition = catalogue.build("two-hop", facts=facts, known=False)
    names = composition.world.entities
    places = [names.index(f"z{i}") for i in range(1, facts + 1)]
    leads: list[float] = []
    shares: dict[str, list[float]] = {"bridge": [], "correct": []}
    for t in TS:
        predicted = predict(composition, Toy(FullLimit(), ExactBase(), Typed(t)))
        score = predicted.output[0]
        leads.append(short(np.max(score[places]) - score[names.index("y1")]))
        for outcome, found in shares.items():
            found.append(short(predicted.shares[outcome]))
    return [
        {
            "kind": "lead",
            "facts": facts,
            "known": False,
            "ts": TS,
            "leads": leads,
            **shares,
            "threshold": short(fresh_threshold(facts)),
            "regime": described(FullLimit()),
            "seeds": [0],
            "draws": 1,
            "spec_hash": composition.spec_hash,
        }
    ]


def _thresholds(base: str, length: float) -> list[Row]:
    """t*(n) in closed form; a trained base knows as many facts again under R1, and twice as many under R2."""
    found = [
        fresh_threshold(n, relation_length=length)
        if base == "exact"
        else trained_threshold(n, first=2 * n, second=3 * n, relation_length=length)
        for n in SIZES
    ]
    return [
        {
            "kind": "threshold",
            "facts": SIZES[-1],
            "known": base == "trained",
            "base": base,
            "relation_length": length,
            "sizes": SIZES,
            "thresholds": [short(value) for value in found],
            "regime": described(FullLimit(relation_length=length)),
            "seeds": [0],
            "draws": 1,
        }
    ]


def jobs() -> list[Computation]:
    curves = [(base, length) for base in ("exact", "trained") for length in (1.0, 2.0)]
    return [
        *(functools.partial(_leads, facts) for facts in (2, 5, 20)),
        *(functools.partial(_thresholds, *curve) for curve in curves),
    ]
