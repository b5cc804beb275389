"""Rows of figure survival: a single hop's margin against its adapter's merge weight."""

from __future__ import annotations

import functools
from dataclasses import replace

from figures.store import Row, described
from figures.theory import Computation
from figures.theory.margins import margins_of
from toytransformer.compositions import Merge, catalogue
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit

#: Merge weights at which survival is computed.
ALPHAS = tuple(round(0.025 * k, 3) for k in range(41))


def _survival(rule: str, facts: int, known: bool) -> list[Row]:
    whole = catalogue.build("one-hop", facts=facts, known=known)
    first_hop = replace(whole, questions=tuple(q for q in whole.questions if q.group == "hop1"))
    merges = [Merge(rule, weights=(alpha, 1 - alpha)) for alpha in ALPHAS]
    worst = [min(margins_of(predict(first_hop.with_merge(merge), FullLimit()))) for merge in merges]
    margins, outcomes = zip(*worst, strict=True)
    return [
        {
            "rule": rule,
            "facts": facts,
            "known": known,
            "alphas": ALPHAS,
            "margins": margins,
            "outcomes": outcomes,
            "regime": described(FullLimit()),
            "seeds": [0],
            "draws": 1,
            "spec_hash": first_hop.spec_hash,
        }
    ]


def jobs() -> list[Computation]:
    cases = [("sum", 1), ("sum", 10), ("linear", 1)]
    return [functools.partial(_survival, *case, known) for case in cases for known in (True, False)]
