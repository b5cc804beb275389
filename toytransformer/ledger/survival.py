"""What a merge leaves of single hops, and so of answering step by step (theory.md, section 6)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from toytransformer.compositions import Merge
from toytransformer.ledger.pair import LEAK, LIMIT, SHARED, Drawn, outcome, pair, parts, threshold
from toytransformer.ledger.registry import Row, Run, algebraic, claim, close, same
from toytransformer.prediction import Prediction, predict
from toytransformer.regimes import Regime

SOURCE = "theory.md section 6"
#: The weights of both adapters, by that of the one that holds the hop.
Weights = Callable[[float], tuple[float, float]]


def leak(n: int) -> float:
    """What an adapter with n facts adds to each of its answers on an unrelated one-hop prompt."""
    return LEAK / (1 + SHARED * (n - 1))


def edge(n: int, known: bool, other: float) -> float:
    """The weight above which a hop survives, `other` being that of the other adapter, of either sign.

    max(1/2, |b| l) for known facts: b < 0 lifts the old answers of the other adapter, one for each fact.
    max(0, b l) for fresh ones, which have no old answers.
    """
    return max(1 / 2, abs(other) * leak(n)) if known else max(0.0, other * leak(n))


def beside(other: float, own: float) -> tuple[float, float]:
    """The weights of both adapters, `own` that of the one that holds the hop."""
    return own, other


def one_hop(n: int, known: bool, merge: Merge) -> Prediction:
    """x_i R1 and y_i R2 asked of the merged pair."""
    return predict(pair(n, known, "one-hop", merge=merge), LIMIT)


@claim(
    "merge weight at which a single hop survives",
    source=SOURCE,
    proof="Survival.known_hop_survives_iff, Survival.fresh_hop_survives_iff",
)
def edges(run: Run) -> Iterator[Row]:
    for n, known in itertools.product((1, 10), (True, False)):
        spill = leak(n)
        cases: dict[str, tuple[Weights, float]] = {
            "weights (a, 1 - a)": (lambda a: (a, 1 - a), max(known / 2, spill / (1 + spill))),
            **{
                f"weights (a, {b:g})": (partial(beside, b), edge(n, known, b)) for b in (1.0, 4.0, -1.0, -4.0)
            },
        }
        for text, (weights, expected) in cases.items():

            def survives(a: float, n: int = n, known: bool = known, weights: Weights = weights) -> bool:
                found = one_hop(n, known, Merge("sum", weights(a)))
                return all(found.distributions[i].get(f"y{i + 1}", 0) == 1 for i in range(n))

            note = "max(1/2, size of the other's weight x its leak)"
            note = note if known else "max(0, weight of the other x its leak)"
            label = f"{text}, n = {n} {'known' if known else 'fresh'} facts"
            found = threshold(survives, 0.0, 4.0)
            yield close(label, expected, found, algebraic(4.0), regime="limit", note=note)


@claim(
    "outputs on x R1 under weights (a, b)",
    source=f"{SOURCE}; 3.2",
    proof="TwoEdits.sum_merge_breaks_one_hop",
)
def one_hop_outputs(run: Run) -> Iterator[Row]:
    base, added = parts(pair(1, name="one-hop"))
    names = pair(1).world.entities
    for a, b in ((1.0, 1.0), (0.5, 0.5), (0.7, 0.3)):
        output = base[0] + a * added[0, 0] + b * added[1, 0]
        expected = {"y1": a, "y1_old": 1 - a, "z1": b * LEAK, "a1": -b * LEAK}
        worst = max(abs(output[names.index(entity)] - value) for entity, value in expected.items())
        note = "y: a, old y: 1 - a, z: b/pi, old z: -b/pi; so the sum moves its own one-hop prompts too"
        yield close(f"a = {a}, b = {b}", 0.0, float(worst), algebraic(), regime="limit", note=note)


@claim(
    "uniform merging and single hops",
    source=f"{SOURCE}; Table 10",
    proof="Survival.uniform_products_tie, Survival.uniform_factors_below",
)
def uniform(run: Run) -> Iterator[Row]:
    finite = Drawn(dimension=256, width=4096, seed=run.seed)
    regimes: tuple[Regime, ...] = (LIMIT, finite)
    for known, regime in itertools.product((True, False), regimes):
        facts = "known facts" if known else "fresh facts"
        label = "limit" if regime is LIMIT else "finite d=256 m=4096"
        composition = pair(10, known, "one-hop")
        total, mean, linear = (
            predict(composition.with_merge(Merge(rule)), regime) for rule in ("sum", "mean", "linear")
        )
        yield same(f"sum, n = 10 {facts}", "correct", outcome(total), regime=label)
        if known:
            text = f"mean of products, n = 10 {facts}: new and old tie at 1/2, accuracy"
            yield close(text, 0.5, mean.accuracy, algebraic(), regime=label, note="exactly on the edge")
            text = f"factor-wise mean (eq. 27), n = 10 {facts}"
            yield same(text, "old", outcome(linear), regime=label)
        else:
            yield same(f"mean of products, n = 10 {facts}", "correct", outcome(mean), regime=label)
    found = one_hop(1, True, Merge("linear"))
    names = found.composition.world.entities
    expected, measured = (1 + LEAK) / 4, float(found.output[0, names.index("y1")])
    note = "1/4 and a cross term of 1/(4 pi), against the old answer's 1 - 0.3296"
    yield close(
        "factor-wise mean, one fact: y on x R1", expected, measured, algebraic(), regime="limit", note=note
    )


@claim(
    "answering in two steps",
    source=f"{SOURCE}; Table 10",
    proof="Survival.two_steps_known, Survival.two_steps_fresh",
)
def two_steps(run: Run) -> Iterator[Row]:
    finite = Drawn(dimension=256, width=4096, seed=run.seed)
    expected = {("sum", True): 1.0, ("sum", False): 1.0, ("mean", True): 0.25, ("mean", False): 1.0}
    cases: tuple[tuple[int, Regime, str], ...] = (
        (1, LIMIT, "limit"),
        (10, LIMIT, "limit"),
        (10, finite, "finite d=256 m=4096"),
    )
    for ((rule, known), accuracy), (n, regime, label) in itertools.product(expected.items(), cases):
        found = predict(pair(n, known, "chain-of-thought", merge=Merge(rule)), regime)
        note = (
            f"asked directly: {predict(pair(n, known, merge=Merge(rule)), LIMIT).accuracy:.3g} in the limit"
        )
        if accuracy < 1:
            note += "; each hop ties with its old answer, 1/2 x 1/2, never surely right"
        text = f"{rule}, n = {n} {'known' if known else 'fresh'} facts: accuracy"
        yield close(text, accuracy, found.accuracy, algebraic(), regime=label, note=note)
    found = predict(pair(10, name="chain-of-thought", merge=Merge("linear")), LIMIT)
    yield same("factor-wise mean, n = 10 known facts", "old", outcome(found), regime="limit")


@claim(
    "two steps succeed where each hop survives",
    source=SOURCE,
    proof="Survival.two_steps_known, Survival.two_steps_fresh",
)
def condition(run: Run) -> Iterator[Row]:
    grid = np.arange(1, 40, 1 if run.thorough else 3) / 32 + 1 / 128
    for n, known in itertools.product((1, 3), (True, False)):
        half, broken, passed, besides = known / 2, 0, 0, 0
        for a, b in itertools.product(grid.tolist(), repeat=2):
            stated = a > edge(n, known, b) and b > edge(n, known, a)
            composition = pair(n, known, "chain-of-thought", merge=Merge("sum", (a, b)))
            right = predict(composition, LIMIT).strict_accuracy == 1
            broken, passed, besides = (
                broken + (stated and not right),
                passed + right,
                besides + (right and not stated),
            )
        facts = f"n = {n} {'known' if known else 'fresh'}"
        note = f"l = (1/pi)/(1 + 0.609 (n-1)); {passed} of {len(grid) ** 2} pairs of weights compose"
        text = f"{facts}: failures with a > max({half:g}, b l) and b > max({half:g}, a l)"
        yield same(text, 0, broken, regime="limit", note=note)
        lucky = n == 1 and not known
        note = "one fresh fact: a leaked z in step one, and z R2 shares R2, so z again" if lucky else ""
        text = f"{facts}: does it also succeed elsewhere"
        yield same(text, lucky, besides > 0, regime="limit", note=note)
