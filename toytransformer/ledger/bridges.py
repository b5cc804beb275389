"""What a bridge does in the toy model (theory.md, section 6)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from toytransformer.compositions import Merge, setups
from toytransformer.ledger.pair import C1, C2, FAR, LEAK, LIMIT, SHARED
from toytransformer.ledger.registry import Row, Run, algebraic, at_least, at_most, claim, close, same
from toytransformer.prediction import predict
from toytransformer.scales import winning
from toytransformer.typed import overlaps

SOURCE = "theory.md section 6; Table 1, setup 2"


@claim("what a bridge does to y and z", source=SOURCE, proof="Bridges.bridge_coefficients")
def bridge(run: Run) -> Iterator[Row]:
    for n in (2, 50):
        plain, bridged = (setups.setup(k, facts=n, known=False, merge=Merge("sum")) for k in (0, 2))
        before, after = (predict(composition, LIMIT) for composition in (plain, bridged))
        number = next(
            i
            for i, question in enumerate(bridged.questions)
            if question.group == "two-hop" and question.decode == "direct"
        )
        own, held = (C1 - FAR) / (1 - SHARED), (2 * n, n)
        firsts, seconds = _sums(held, own=True), _sums(held[::-1], own=False)
        expected = {"y1": own + (firsts[0] - own) / held[0], "z1": seconds[1] / held[0]}
        for entity, value in expected.items():
            note = f"without a bridge {before.coefficient(number, entity):.4f}"
            text = f"coefficient of {entity[0]} on x R1 R2, n = {n} fresh facts, as many of the bridge"
            measured = after.coefficient(number, entity)
            yield close(text, value, measured, algebraic(), regime="limit", note=note)
            text = f"{text}: by how much it falls"
            fall = before.coefficient(number, entity) - measured
            yield at_least(text, 0.0, fall, algebraic(), regime="limit")
    for k in (0, 2):
        built = setups.setup(k, facts=5)
        alone = [predict(built.with_merge(Merge("sum", (a, 0.0))), LIMIT) for a in (0.0, 1.0)]
        asked = [i for i, question in enumerate(built.questions) if question.group == "hop1"]
        names = built.world.entities
        right = np.array([names.index(str(built.questions[i].correct)) for i in asked])
        low, _ = winning(alone[0].output[asked], alone[1].output[asked], right)
        note = "a bridge does not move the weight at which an adapter's own hop survives"
        text = f"a* of known facts on their own, setup {k}"
        yield close(text, 1 / 2, float(low.max()), algebraic(), regime="limit", note=note)


@claim(
    "a bridge never raises y, and costs it a constant over n at most; small ones raise every z",
    source=SOURCE,
    proof="Bridges.bridge_margin, Bridges.bridge_lowers_z_iff",
)
def sizes(run: Run) -> Iterator[Row]:
    own = (C1 - FAR) / (1 - SHARED)
    most = (FAR - SHARED * own) / SHARED + LEAK * (C2 - LEAK * own) / (SHARED**2 - LEAK**2)
    for n, size in ((1, 1), (2, 10), (20, 1), (30, 30), (90, 1)):
        cases = [setups.setup(k, facts=n, bridge_facts=size, known=False, merge=Merge("sum")) for k in (0, 2)]
        before, after = (predict(composition, LIMIT) for composition in cases)
        places = [
            next(i for i, q in enumerate(c.questions) if q.group == "two-hop" and q.decode == "direct")
            for c in cases
        ]
        fall, lost = (
            before.coefficient(places[0], entity) - after.coefficient(places[1], entity)
            for entity in ("y1", "z1")
        )
        text = f"n = {n} fresh facts, a bridge of {size}"
        yield at_least(f"{text}: by how much y falls", 0.0, fall, algebraic(), regime="limit")
        note = "C = (far - S A)/S + L (c2 - L A)/(S^2 - L^2), whatever the size of the bridge"
        yield at_most(f"{text}: n times that", most, n * fall, algebraic(n), regime="limit", note=note)
        falls = C2 * LEAK**2 * n < C2 * SHARED * (1 - SHARED) + C2 * (
            SHARED**2 - LEAK**2
        ) * size + LEAK * FAR * (1 + SHARED * (n - 1))
        note = "all z alike; a bridge of at least n facts always lowers them"
        yield same(f"{text}: does z fall", falls, bool(lost > 0), regime="limit", note=note)
    for length in (0.1, 1.0, 10.0):
        k = overlaps(length)
        text = f"far - S c1, relations {length:g} times as long: below 0 a bridge could raise y"
        yield at_least(text, 0.0, k.far - k.relation * k.c1, algebraic(), regime="limit")


def _sums(held: tuple[int, int], own: bool) -> tuple[float, float]:
    """Sums of an adapter's coefficients on x R1 R2 over its facts under R1 and R2, `held` many of each.

    own: whether x R1 is one of them. The facts share a relation or nothing.
    """
    first, second = held
    system = [
        [1 - SHARED + first * SHARED, first * LEAK],
        [second * LEAK, 1 - SHARED + second * SHARED],
    ]
    seen = [(C1 - FAR if own else 0.0) + first * FAR, second * C2]
    one, two = np.linalg.solve(system, seen)
    return float(one), float(two)
