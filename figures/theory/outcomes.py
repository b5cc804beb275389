"""Rows of figure outcomes: what is answered by merge rule, knowledge of the base and number of facts."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from figures.store import Row, described, short
from figures.theory import Computation
from predictors.limit import undetermined
from toytransformer import merging, symmetry
from toytransformer.compositions import Composition, Merge, catalogue
from toytransformer.prediction import predict
from toytransformer.regimes import FullLimit, Regime, WidthLimit

#: Numbers of facts in the outcome map, and those reached through the permutation symmetry.
FACTS, MANY = (1, 2, 3, 10, 100), (1_000, 1_000_000)
#: Two-hop examples shown to the rules that are fitted.
EXAMPLES = 4
#: Neurons behind the rules that act on single entries of Delta W, by number of facts.
NEURONS = {1: 2**14, 2: 2**14, 3: 2**14, 10: 2**12, 100: 2**11}
#: Dimension and number of draws that break a tie of singular values, by number of facts.
TIE_DIMENSION, TIE_DRAWS = 2**12, {100: 2}


def _nonzero(shares: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of several shares of outcomes, without the outcomes that never occur."""
    means = {outcome: short(math.fsum(s[outcome] for s in shares) / len(shares)) for outcome in shares[0]}
    return {outcome: mean for outcome, mean in means.items() if mean}


def _outcome(group: str, name: str, rule: str, facts: int, known: bool) -> list[Row]:
    spec = merging.resolve(rule)
    composition = catalogue.build(
        name, facts=facts, known=known, merge=Merge(rule), examples=EXAMPLES if spec.needs_data else 0
    )
    neurons = NEURONS[facts]
    regime: Regime = FullLimit(quadrature=neurons)
    predicted = [predict(composition, regime)]
    tied = undetermined(predicted[0])
    if tied:
        draws = range(TIE_DRAWS.get(facts, 8))
        regime = WidthLimit(dimension=TIE_DIMENSION, quadrature=neurons)
        predicted = [predict(composition, replace(regime, seed=seed)) for seed in draws]
    shares = [p.shares for p in predicted]
    return [
        {
            "group": group,
            "composition": name,
            "rule": rule,
            "facts": facts,
            "known": known,
            "shares": _nonzero(shares),
            "tied": tied,
            "neurons": neurons if spec.needs_neurons else None,
            "examples": len(composition.examples),
            "regime": described(regime),
            "seeds": list(range(len(predicted))),
            "draws": len(predicted),
            "spec_hash": composition.spec_hash,
        }
    ]


def _outcome_of_many(group: str, name: str, rule: str, facts: int, known: bool) -> list[Row]:
    def build(n: int) -> Composition:
        return catalogue.build(name, facts=n, known=known, merge=Merge(rule))

    predicted = symmetry.predict(build, facts)
    return [
        {
            "group": group,
            "composition": name,
            "rule": rule,
            "facts": facts,
            "known": known,
            "shares": _nonzero([predicted.shares]),
            "tied": False,
            "neurons": None,
            "examples": 0,
            "regime": described(FullLimit()),
            "seeds": [0],
            "draws": 1,
            "method": "permutation symmetry",
        }
    ]


def outcome_cases() -> list[tuple[str, str, str]]:
    """(group, composition, rule) of every line of the map; the rules come from the registry.

    Controls are left out: what random matrices in the adapters' place answer tells nothing here. So are the
    rules on factors that are PEFT's alone, of which no paper measures one.
    """
    known = [r for r in merging.RULES.values() if not (r.factor_wise and r.aliases)]
    plain = [r for r in known if r.adapter_kind == "closed-form"]
    free = [("pair", "two-hop", r.name) for r in plain if not r.needs_data]
    fitted = [("fitted", "two-hop", r.name) for r in plain if r.needs_data and not r.control]
    alone = [("one", name, "sum") for name in ("hop1-only", "hop2-only", "mixed")]
    oracle = [("oracle", "with-oracle", rule) for rule in ("sum", "mean", "arrow-products")]
    return [*free, *fitted, *alone, ("oracle", "oracle-only", "sum"), *oracle]


def jobs() -> list[Computation]:
    jobs: list[Computation] = []
    for case in outcome_cases():
        for known in (True, False):
            jobs += [functools.partial(_outcome, *case, facts, known) for facts in FACTS]
            if case[2] in ("sum", "mean"):
                jobs += [functools.partial(_outcome_of_many, *case, facts, known) for facts in MANY]
    return jobs
