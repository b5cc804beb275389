"""The numbers behind the drawings, as plain JSON rows: computed here, kept by `store`, drawn by `theory`.

A part (one drawing's rows) is a list of jobs; a job computes a few rows and takes at most a few seconds.
Every row says its regime, its seeds and how many draws stand behind it; the file says once what all of them
were computed with, and `store.read` puts that into each row.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from figures import samples
from figures.samples import Job
from figures.store import Row, described, short
from toytransformer import adapters as lora
from toytransformer import merging, symmetry
from toytransformer.compositions import Composition, Merge, catalogue
from toytransformer.prediction import Prediction, predict
from toytransformer.regimes import FullLimit, Regime, WidthLimit

#: Numbers of facts in the outcome map, and those reached through the permutation symmetry.
FACTS, MANY = (1, 2, 3, 10, 100), (1_000, 1_000_000)
#: Two-hop examples shown to the rules that are fitted.
EXAMPLES = 4
#: Neurons behind the rules that act on single entries of Delta W, by number of facts.
NEURONS = {1: 2**14, 2: 2**14, 3: 2**14, 10: 2**12, 100: 2**11}
#: Dimension and number of draws that break a tie of singular values, by number of facts.
TIE_DIMENSION, TIE_DRAWS = 2**12, {100: 2}


def compute(
    parts: Sequence[str] | None = None, tick: Callable[[str, int, int], Any] | None = None
) -> list[Row]:
    """The rows of the parts (all of them when None); `tick(part, jobs done, jobs)` after every job.

    Draws are made in float64, whatever JAX is set to.
    """
    with jax.enable_x64(True):
        jobs = [(name, job) for name in parts or PARTS for job in PARTS[name]()]
        found = []
        for number, (name, job) in enumerate(jobs, start=1):
            found += [{"figure": name, **row} for row in job()]
            if tick:
                tick(name, number, len(jobs))
    return found


# --- outcome map ----------------------------------------------------------------------------------


def undetermined(predicted: Prediction) -> bool:
    """Whether tied singular values (relative gap < 1e-8) leave the vectors that the result needs open."""
    rule = merging.resolve(predicted.composition.merge.rule)
    details = predicted.merged.details
    gaps = [predicted.merged.spectral_gap, details.get("cut_gap")]
    if not rule.gauge_invariant and rule.adapter_kind == "closed-form":
        for adapter in predicted.adapters:
            values = adapter.svd()[1]
            gaps += list(-np.diff(values) / values[0])
    return any(gap is not None and gap < 1e-8 for gap in gaps)


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

    found = symmetry.predict(build, facts)
    return [
        {
            "group": group,
            "composition": name,
            "rule": rule,
            "facts": facts,
            "known": known,
            "shares": _nonzero([found.shares]),
            "tied": False,
            "neurons": None,
            "examples": 0,
            "regime": described(FullLimit()),
            "seeds": [0],
            "draws": 1,
            "method": "permutation symmetry",
        }
    ]


#: Rules left out of the map: what random matrices in the adapters' place answer tells nothing here.
CONTROLS = ("adaptive-random",)


def outcome_cases() -> list[tuple[str, str, str]]:
    """(group, composition, rule) of every line of the map; the rules come from the registry."""
    plain = [r for r in merging.RULES.values() if r.adapter_kind == "closed-form"]
    free = [("pair", "two-hop", r.name) for r in plain if not r.needs_data]
    fitted = [("fitted", "two-hop", r.name) for r in plain if r.needs_data and r.name not in CONTROLS]
    alone = [("one", name, "sum") for name in ("hop1-only", "hop2-only", "mixed")]
    oracle = [("oracle", "with-oracle", rule) for rule in ("sum", "mean", "arrow-products")]
    return [*free, *fitted, *alone, ("oracle", "oracle-only", "sum"), *oracle]


def outcome_jobs() -> list[Job]:
    jobs: list[Job] = []
    for case in outcome_cases():
        for known in (True, False):
            jobs += [functools.partial(_outcome, *case, facts, known) for facts in FACTS]
            if case[2] in ("sum", "mean"):
                jobs += [functools.partial(_outcome_of_many, *case, facts, known) for facts in MANY]
    return jobs


# --- survival of one hop, and the gauge orbit -----------------------------------------------------


def _margins(predicted: Prediction) -> list[tuple[float, str]]:
    """Right output minus the largest other one, and the outcome (ties: "tie"), question by question."""
    found = []
    names = predicted.composition.world.entities
    rows = zip(predicted.composition.questions, predicted.output, predicted.distributions, strict=True)
    for question, output, answers in rows:
        right = names.index(question.correct)
        outcomes = {question.outcome(answer) for answer in answers}
        margin = short(output[right] - np.delete(output, right).max())
        found.append((margin, outcomes.pop() if len(outcomes) == 1 else "tie"))
    return found


#: Merge weights at which survival is computed.
ALPHAS = tuple(round(0.025 * k, 3) for k in range(41))


def _survival(rule: str, facts: int, known: bool) -> list[Row]:
    whole = catalogue.build("one-hop", facts=facts, known=known)
    first_hop = replace(whole, questions=tuple(q for q in whole.questions if q.group == "hop1"))
    merges = [Merge(rule, weights=(alpha, 1 - alpha)) for alpha in ALPHAS]
    worst = [min(_margins(predict(first_hop.with_merge(merge), FullLimit()))) for merge in merges]
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


def survival_jobs() -> list[Job]:
    cases = [("sum", 1), ("sum", 10), ("linear", 1)]
    return [functools.partial(_survival, *case, known) for case in cases for known in (True, False)]


#: Merge weights of the gauge orbit: with them the aligned gauge answers every two-hop prompt.
ORBIT_WEIGHTS, ORBIT_SEEDS = (1.2, 1.5), 300


def _pair_in_gauges(rule: str, known: bool, gauges: tuple[str, str]) -> Composition:
    whole = catalogue.build("two-hop", facts=2, known=known, merge=Merge(rule, weights=ORBIT_WEIGHTS))
    pairs = zip(whole.adapters, gauges, strict=True)
    return replace(whole, adapters=tuple(replace(adapter, gauge=gauge) for adapter, gauge in pairs))


def _gauge(known: bool) -> list[Row]:
    """The sum (no gauge matters), the named gauges and the random ones, as columns of one row each."""
    named = {"aligned": ("facts", "facts"), "SVD": ("svd", "svd"), "signs flipped": ("svd", "flipped")}
    orbit = {f"random:{seed}": ("facts", f"random:{seed}") for seed in range(ORBIT_SEEDS)}
    several = {"sum": {"any": ("facts", "facts")}, "named": named, "orbit": orbit}
    return [_gauge_row(kind, known, gauges) for kind, gauges in several.items()]


def _gauge_row(kind: str, known: bool, gauges: Mapping[str, tuple[str, str]]) -> Row:
    rule = "sum" if kind == "sum" else "linear"
    specs = [_pair_in_gauges(rule, known, pair) for pair in gauges.values()]
    several = [predict(spec, FullLimit()) for spec in specs]
    row: Row = {"kind": kind, "rule": rule, "known": known, "facts": 2, "weights": ORBIT_WEIGHTS}
    if rule == "linear":
        aligned = predict(_pair_in_gauges("linear", known, ("facts", "facts")), FullLimit()).adapters
        turns = [_turn(aligned, predicted.adapters) for predicted in several]
        row["reflection"] = [bool(np.linalg.det(turn) < 0) for turn in turns]
        row["angle"] = [round(math.degrees(math.atan2(turn[1, 0], turn[0, 0])), 2) for turn in turns]
    return row | {
        "gauges": list(gauges),
        "margins": [[margin for margin, _ in _margins(predicted)] for predicted in several],
        "regime": described(FullLimit()),
        "seeds": list(range(len(gauges))) if kind == "orbit" else [],
        "draws": 1,
        "spec_hash": specs[0].spec_hash,
    }


def _turn(aligned: Sequence[lora.LoRA], pair: Sequence[lora.LoRA]) -> np.ndarray:
    """The orthogonal matrix that turns the second adapter's columns against the first's, (rank, rank)."""
    first, second = (
        np.linalg.lstsq(a.read, b.read, rcond=None)[0] for a, b in zip(aligned, pair, strict=True)
    )
    return first @ second.T


def gauge_jobs() -> list[Job]:
    return [functools.partial(_gauge, known) for known in (True, False)]


PARTS: dict[str, Callable[[], list[Job]]] = {
    "convergence": samples.convergence_jobs,
    "outcomes": outcome_jobs,
    "survival": survival_jobs,
    "gauge": gauge_jobs,
    "leak": samples.leak_jobs,
}
