"""Typed answers: where a direct question moves to another kind, and what Arrow then sees (theory.md, 8d)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from toytransformer import symmetry
from toytransformer.adapters import closed_form
from toytransformer.bases import ExactBase, TrainedBase, wanted_shift
from toytransformer.compositions import Composition, Merge, Prompt, setups
from toytransformer.compositions.knowledge import known_to
from toytransformer.ledger.pair import LIMIT, pair
from toytransformer.ledger.registry import Row, Run, algebraic, asymptotic, claim, close, same
from toytransformer.ledger.routing import arrow
from toytransformer.prediction import Prediction, predict
from toytransformer.prototypes import arrow_weights, bridged_known, first_direction, fresh, known, seen
from toytransformer.readout import Typed
from toytransformer.regimes import FullLimit
from toytransformer.symmetry import SymmetricPrediction as Symmetric
from toytransformer.toy import Toy
from toytransformer.typed import fresh_threshold, overlaps, trained_threshold

SOURCE = "theory.md section 8d"
SQRT = Merge("arrow-products", options={"temperature_scaling": "sqrt-width"})


def toy(t: float, length: float = 1.0, trained: bool = False) -> Toy:
    """The full limit with typed answers."""
    return Toy(FullLimit(relation_length=length), TrainedBase() if trained else ExactBase(), Typed(t))


@claim(
    "t*(n): a direct question moves from the bridge entity to a place",
    source=SOURCE,
    proof="TypedReadout.direct_answer_is_a_place, TypedReadout.t_star_quotient",
)
def thresholds(run: Run) -> Iterator[Row]:
    cases = [(5, 1.0), (20, 1.0), (20, 2.0), (10**6, 1.0)]
    for trained in (False, True):
        base = "a base trained on one-hop facts" if trained else "fresh facts, exact base"
        for n, length in cases:

            def asked(t: float, n: int = n, length: float = length, trained: bool = trained) -> Symmetric:
                def built(facts: int) -> Composition:
                    return pair(facts, degree="one-hop") if trained else pair(facts, known=False)

                return symmetry.predict(built, n, toy(t, length, trained))

            if trained:
                expected = trained_threshold(n, first=2 * n, second=3 * n, relation_length=length)
            else:
                expected = fresh_threshold(n, relation_length=length)
            start, half = (_lead(asked(t)) for t in (0.0, 0.5))
            text = f"{base}, n = {n}, relations {length:g} times as long"
            note = "where the lead of the bridge entity over z, a straight line in t, is zero"
            found = start / (start - half) / 2
            yield close(text, expected, found, algebraic(n), regime="limit, by symmetry", note=note)
            answers = [asked(expected + step).shares["bridge"] for step in (-1e-4, 1e-4)]
            text = f"{text}: share answered by the bridge entity on both sides"
            yield same(text, [1.0, 0.0], answers, regime="limit, by symmetry")
    dense = predict(pair(5, known=False), toy(0.6))
    note = "typed, the z tie as they did: a place, right in one of n"
    yield close("right above t*, n = 5", 1 / 5, dense.accuracy, algebraic(), regime="limit", note=note)
    k = overlaps()
    own = (k.c1 - k.far) / (1 - k.relation)
    pull = k.c2 - k.far + k.relation * own
    for n in (2, 20):
        closed = k.relation * own / pull - (pull - own) / (pull * (n - 1))
        text = f"S A / B - (B - A) / (B (n - 1)), B = c2 - far + S A, n = {n}"
        yield close(text, closed, fresh_threshold(n), algebraic(n), regime="limit")
    limit, n = own / (own + (k.c2 - k.far) / k.relation), 10**6
    room = asymptotic(10 / n, "the coefficients differ from their limits by terms of order 1 / n")
    text = "as n grows: A / (A + (c2 - far) / S), A = (c1 - far) / (1 - S)"
    yield close(text, limit, fresh_threshold(n), room, regime="limit, n = 1000000")


def _lead(found: Symmetric) -> float:
    """By how much the bridge entity's score exceeds that of z, both of the chain that is asked about."""
    y, z = (found.entities.index(name) for name in ("y1", "z1"))
    return float(found.own[0, y] - found.own[0, z])


def weights_of(predicted: Prediction, trained: bool = False) -> np.ndarray:
    """Arrow's weights on each question, (question, adapter); trained: under a trained base."""
    composition = predicted.composition
    known = TrainedBase().prompts(composition.world) if trained else ()
    prompts = tuple(dict.fromkeys((*composition.prompts, *known)))
    rows = dict(zip(prompts, LIMIT.features(prompts).values, strict=True))
    return arrow(predicted).routing(np.stack([rows[q.prompt] for q in composition.questions]))


@claim("the first right-singular direction of typed facts", source=SOURCE)
def directions(run: Run) -> Iterator[Row]:
    relation = overlaps().relation
    for n in (2, 5):
        for t in (relation - 0.01, relation + 0.01):
            expected = first_direction([fresh(n, "R1", t)])
            found = predict(pair(n, known=False, merge=SQRT), toy(t))
            text = f"{n} fresh facts of one kind, t = S {'-' if t < relation else '+'} 0.01: spectral gap"
            gap = min(arrow(found).details["spectral_gaps"])
            # s2 / s1 is a square root of rounding where the two agree
            yield close(text, expected.gap, gap, algebraic(1.0), regime="limit")
            sees = bool(expected.coefficients)
            note = "above S the mean feature; below a difference of facts, one of n - 1 that tie"
            yield same(f"{text}: is it the mean", t > relation, sees, regime="limit", note=note)
    for m in (1, 4, 20):
        for t in (1 / (m + 1) - 0.005, 1 / (m + 1) + 0.005):
            direction = first_direction([known(5, "R1", t), fresh(m, "R1", t)])
            text = f"{m} fresh beside 5 known facts, t = {t:.3f}: is it one of means"
            note = "from t = 1 / (m + 1) on, whatever S"
            yield same(text, t > 1 / (m + 1), bool(direction.coefficients), regime="limit", note=note)


@claim(
    "Arrow does not see its own task in an entity it was not trained on",
    source=SOURCE,
    proof="UnseenEntities.distinct_answers_see_nothing, UnseenEntities.mean_feature_sees",
)
def unseen(run: Run) -> Iterator[Row]:
    k = overlaps()
    for n in (2, 5, 20):
        composition = pair(n)
        # to the partner, u1 R1 is what u1 R2 is to this adapter
        prompts = (*composition.adapters[0].prompts, Prompt("u1", ("R1",)), Prompt("u1", ("R2",)))
        features = LIMIT.features(prompts).values
        phi, other = features[:-1], features[-1]
        changes = wanted_shift(composition.world, composition.adapters[0].facts)
        _, _, right = closed_form(phi[:-1], changes, gauge="plain").svd()
        logit = float(np.linalg.norm(phi[-1] @ right[:, : n - 1]))
        text = f"largest |p . phi| of u R1 over the first directions, n = {n}"
        note = "all of them are orthogonal to the mean feature, and u R1 sees nothing else"
        yield close(text, 0.0, logit, algebraic(n), regime="limit", note=note)
        mean = phi[:-1].mean(axis=0)
        expected = math.sqrt(k.key) * k.relation / math.sqrt((1 + (n - 1) * k.relation) / n)
        found = float(phi[-1] @ mean / np.linalg.norm(mean))
        text = f"with the mean feature as prototype, n = {n}"
        yield close(text, expected, found, algebraic(), regime="limit")
        partners = float(other @ mean / np.linalg.norm(mean))
        text = f"weight of its own adapter on u R1, with mean features as prototypes, n = {n}"
        shares = arrow_weights((expected, expected * k.leak / k.relation))
        note = "1 / 2 with Arrow's prototypes, as both logits are 0"
        found = arrow_weights((found, partners))[0]
        yield close(text, shares[0], found, algebraic(), regime="limit", note=note)


@claim("Arrow's weights where both adapters hold one fresh bridge", source=SOURCE)
def bridged(run: Run) -> Iterator[Row]:
    for n, t in ((5, 0.3), (5, 0.6), (20, 0.6)):
        whole = setups.setup(2, facts=n, merge=SQRT)
        asked = tuple(q for q in whole.questions if q.group in ("hop1", "hop2"))
        found = predict(replace(whole, questions=asked), toy(t))
        weights = weights_of(found)
        shared = [fresh(n, "R1", t), fresh(n, "R2", t, 1)]
        library = ([known(n, "R1", t), *shared], [known(n, "R2", t), *shared])
        sides = [(groups, first_direction(groups)) for groups in library]
        for hop, relation in enumerate(("R1", "R2")):
            logits = [
                seen(groups, direction, relation=relation, member=0 if i == hop else None)
                for i, (groups, direction) in enumerate(sides)
            ]
            expected = arrow_weights(logits)[hop]
            row = next(i for i, q in enumerate(asked) if q.group == f"hop{hop + 1}")
            text = f"weight of adapter {hop + 1} on its own hop, n = {n}, t = {t:g}"
            gap = sides[hop][1].gap
            note = "the bridge is what both see, so each hop is near the edge of section 6"
            room = algebraic(1 / gap)
            yield close(text, expected, float(weights[row, hop]), room, regime="limit", note=note)
    yield from _known_bridges()
    plain = predict(pair(5, merge=SQRT), toy(0.6))
    note = "known facts of one kind have nothing in common at any t: no prototype"
    gap = min(arrow(plain).details["spectral_gaps"])
    yield close("without a bridge: spectral gap", 0.0, gap, algebraic(), regime="limit", note=note)


def _known_bridges() -> Iterator[Row]:
    """Known facts and a base trained on one-hop facts; the bridge's names of its kinds, or of others."""
    for n, same_kind in ((5, True), (5, False), (20, False)):
        predicted = _trained_bridge(n, 0.6, same_kind)
        gaps = arrow(predicted).details["spectral_gaps"]
        sides = bridged_known(n, n, 0.6, first=2 * n, second=3 * n, same_kind=same_kind)
        directions = [first_direction(groups, products) for groups, products in sides]
        text = f"a base trained on one-hop facts, a bridge of {'the same' if same_kind else 'another'} kind"
        for hop, direction in enumerate(directions):
            label = f"{text}, n = {n}: spectral gap of adapter {hop + 1}"
            note = "the base has said the kind already, so prototypes tie" if same_kind else ""
            yield close(label, direction.gap, gaps[hop], algebraic(n), regime="limit", note=note)
        if not same_kind:
            own = seen(sides[0][0], directions[0], relation="R1", member=0)
            partners = seen(sides[1][0], directions[1], relation="R1")
            expected, _ = arrow_weights((own, partners))
            measured = float(weights_of(predicted, trained=True)[0, 0])
            label = f"{text}, n = {n}: weight of adapter 1 on its own hop"
            yield close(label, expected, measured, algebraic(n), regime="limit")


def _trained_bridge(n: int, t: float, same_kind: bool) -> Prediction:
    """Setup 2 on known facts asked hop by hop, under Arrow and a base trained on one-hop facts."""
    whole = setups.setup(2, facts=n, merge=SQRT)
    whole = whole.with_world(known_to(whole.world, [q.prompt for q in whole.questions], "one-hop"))

    def kind(name: str) -> str:
        role = "person" if name.removeprefix("bridge_")[0] in "xyuv" else "place"
        return role if same_kind or not name.startswith("bridge_") else f"{role} of the bridge"

    asked = tuple(q for q in whole.questions if q.group in ("hop1", "hop2"))
    readout = Typed(t, {name: kind(name) for name in whole.world.entities})
    return predict(replace(whole, questions=asked), Toy(LIMIT, TrainedBase(), readout))
