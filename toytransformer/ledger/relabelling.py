"""No composition by relabelling (theory.md, section 5): every label-blind rule and every permutation."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from toytransformer import merging
from toytransformer.compositions import Composition, Merge
from toytransformer.hidden import ATTENTIONS
from toytransformer.ledger.pair import LIMIT, Drawn, pair
from toytransformer.ledger.registry import Row, Run, Tolerance, at_most, claim, close, same
from toytransformer.regimes import Regime
from toytransformer.relabelling import RelabellingResult, average

#: Expected accuracies are sums of at most n! shares; this is their rounding.
ROUNDING = Tolerance(1e-12, "algebraic", "a mean of at most n! shares 1/k, each exact to 1e-16")
SOURCE = "theory.md section 5"


def counts(run: Run) -> tuple[int, ...]:
    return (2, 3, 4, 5) if run.thorough else (2, 3, 4)


def small(run: Run) -> tuple[Regime, ...]:
    """Small networks with either attention: the bound needs no width."""
    return tuple(Drawn(dimension=16, width=64, attention=kind, seed=run.seed) for kind in ATTENTIONS)


def relabelled(
    sigma: tuple[int, ...], *, facts: int, known: bool, merge: Merge, **arguments: Any
) -> Composition:
    """x_i R1 -> y_sigma(i), y_i R2 -> z_i."""
    return pair(facts, known, sigma=sigma, merge=merge, **arguments)


def results(
    run: Run, merge: Merge, build: Callable = relabelled, **arguments: object
) -> Iterator[RelabellingResult]:
    """Every n, known and fresh, either attention; all n! relabellings each."""
    for n, known, regime in itertools.product(counts(run), (True, False), small(run)):
        yield average(partial(build, facts=n, known=known, merge=merge, **arguments), n, regime)


@claim(
    "accuracy averaged over all relabellings is at most 1/n",
    source=SOURCE,
    proof=("Relabelling.no_composition_by_relabelling, LabelBlindRules.listed_rules_do_not_compose"),
)
def bound(run: Run) -> Iterator[Row]:
    blind = (rule.name for rule in merging.RULES.values() if rule.label_blind and not rule.needs_data)
    cases: dict[str, tuple[Merge, dict]] = {name: (Merge(name), {}) for name in blind}
    cases["sum, weights 1, 3"] = (Merge("sum", (1.0, 3.0)), {})
    cases["linear, weights 1.2, 1.5"] = (Merge("linear", (1.2, 1.5)), {})
    cases["one adapter on both hops (mixed)"] = (Merge(), {"library": ("mixed",)})
    cases["three adapters: both hops apart and mixed"] = (Merge(), {"library": ("hop1", "hop2", "mixed")})
    where = f"finite d=16 m=64, n = {', '.join(map(str, counts(run)))}"
    note = "known and fresh, uniform and softmax attention; all n! permutations each"
    spreads, best = [], {}
    for name, (merge, arguments) in cases.items():
        found = list(results(run, merge, **arguments))
        share = [result.facts * result.accuracy for result in found]
        spreads += [result.spread / result.tie for result in found]
        best[name] = max(share)
        yield at_most(f"n x accuracy, {name}", 1.0, max(share), ROUNDING, regime=where, note=note)
    attained = [name for name, share in best.items() if abs(share - 1) <= ROUNDING.size]
    yield same("the bound is attained", True, bool(attained), regime=where, note="by " + "; ".join(attained))
    unit = Tolerance(1.0, "algebraic", "rounding of an output, derived in prediction.tie_tolerance")
    yield close(
        "largest change of a z-output between relabellings, in units of its rounding",
        0.0,
        max(spreads),
        unit,
        regime=where,
        note=f"all of the {len(cases)} merges above are label-blind",
    )


def columns_relabelled(sigma: tuple[int, ...], **arguments: Any) -> Composition:
    """Gauge "facts", adapter 2's columns in the order sigma: its column j reads what column j of 1 writes."""
    composition = relabelled(sigma, gauge="facts", **arguments)
    hop1, hop2 = composition.adapters
    return replace(composition, adapters=(hop1, replace(hop2, facts=tuple(hop2.facts[i] for i in sigma))))


@claim(
    "what the relabelling bound does not cover",
    source=f"{SOURCE}, 5a",
    proof="LinearComposes.lin_composes, Arrow.eq28_composes_fresh_facts",
)
def outside(run: Run) -> Iterator[Row]:
    linear, n = Merge("linear", (1.5, 2.0)), 3

    def mean_accuracy(build: Callable, **arguments: object) -> float:
        return average(partial(build, facts=n, **arguments), n, LIMIT).accuracy

    text = f"accuracy over all relabellings, n = {n}: "
    for known in (True, False):
        facts = "known facts" if known else "fresh facts"
        note = "the same two Delta W; the order of the columns is told sigma"
        knows = mean_accuracy(columns_relabelled, known=known, merge=linear)
        yield close(
            f"{text}linear, columns told sigma, {facts}", 1.0, knows, ROUNDING, regime="limit", note=note
        )
        blind = mean_accuracy(relabelled, known=known, merge=linear, gauge="facts")
        note = "right for the one sigma that happens to be the order of the columns"
        yield at_most(
            f"{text}linear, fixed columns, {facts}", 1 / n, blind, ROUNDING, regime="limit", note=note
        )
        oracle = mean_accuracy(relabelled, known=known, merge=Merge(), library=("hop1", "hop2", "oracle"))
        note = "the oracle adapter was shown x_i R1 R2 -> z_sigma(i)"
        yield close(f"{text}sum with an oracle, {facts}", 1.0, oracle, ROUNDING, regime="limit", note=note)
        for name in ("cat-fitted", "new-adapter"):
            other = mean_accuracy(fitted_on_other_chains, known=known, merge=Merge(name))
            note = "examples of other chains say nothing about sigma: still within the bound"
            yield at_most(
                f"{text}{name}, other chains shown, {facts}",
                1 / n,
                other,
                ROUNDING,
                regime="limit",
                note=note,
            )


def fitted_on_other_chains(sigma: tuple[int, ...], **arguments: Any) -> Composition:
    return relabelled(sigma, examples=2, **arguments)
