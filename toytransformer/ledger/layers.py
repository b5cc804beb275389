"""Where composition begins (theory.md, section 11): stacks of layers, tied and not, in every order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from toytransformer import merging
from toytransformer.compositions import Adapter, Composition, Fact, Merge, Prompt, World, question
from toytransformer.layers import Stack, StackPrediction, drawn, predict, threshold, two_layers
from toytransformer.layers.spread import spread
from toytransformer.ledger.pair import LIMIT, pair
from toytransformer.ledger.registry import (
    Row,
    Run,
    algebraic,
    asymptotic,
    at_most,
    claim,
    close,
    same,
    statistical,
)
from toytransformer.ledger.spread import fitted_slope
from toytransformer.regimes import Finite, WidthLimit

SOURCE = "theory.md section 11"
STACK = Stack(LIMIT)
ORDERED = {"hop1": (1,), "hop2": (2,)}
Places = tuple[tuple[int, ...], tuple[int, ...]]
#: Of hop 1 and of hop 2: hop 2 lies nowhere above the lowest layer of hop 1.
OTHER_ORDERS: dict[str, Places] = {
    "both in layer 1": ((1,), (1,)),
    "both in layer 2": ((2,), (2,)),
    "reversed": ((2,), (1,)),
    "hop 1 in both, hop 2 in layer 1": ((1, 2), (1,)),
}
#: Part of hop 2 lies above part of hop 1.
PARTLY: tuple[Places, ...] = (((1, 2), (2,)), ((1,), (1, 2)), ((1, 2), (1, 2)))
#: Kernels, two solves of a few facts and sums of their terms.
ROUNDING = algebraic()


def weighted(facts: int, known: bool, *weights: float, **how: Any) -> Composition:
    return pair(facts, known, merge=Merge("sum", weights), **how)


def accuracies(facts: int, known: bool, weights: tuple[float, ...], stack: Stack = STACK) -> set[float]:
    """The accuracies over all relabellings."""
    return {
        predict(weighted(facts, known, *weights, sigma=sigma), stack, ORDERED).accuracy
        for sigma in itertools.permutations(range(facts))
    }


@claim(
    "hop 1 below hop 2 in tied layers composes",
    source=SOURCE,
    proof="TwoLayers.tied_layers_compose, TwoLayers.tied_layers_compose_known",
)
def ordered(run: Run) -> Iterator[Row]:
    for known, stays in itertools.product((True, False), (True, False)):
        stack = Stack(LIMIT, attention_stays=stays)
        where = f"limit, attention {'stays' if stays else 'is read only'}, {'known' if known else 'fresh'}"
        for facts in (1, 2, 8):
            closed = two_layers(facts, 1.0, known=known, attention_stays=stays).threshold
            found = threshold(weighted(facts, known, 1, 1), stack, ORDERED, "hop2")
            yield close(
                f"weight of hop 2 that composes, n = {facts}, hop 1 at 1",
                closed,
                found,
                ROUNDING,
                regime=where,
            )
        closed = two_layers(3, 1.0, known=known, attention_stays=stays).threshold
        for factor, right in ((1.001, 1.0), (0.999, 0.0)):
            yield same(
                f"accuracies over all relabellings, n = 3, hop 2 at {factor:g} of that",
                {right},
                accuracies(3, known, (1.0, factor * closed), stack),
                regime=where,
            )
    hops = pair(4, True, name="one-hop", merge=Merge("sum", (1.0, 3.0)))
    yield same(
        "both hops survive, n = 4, weights 1, 3", 1.0, predict(hops, STACK, ORDERED).accuracy, regime="limit"
    )
    for base in ((1,), (2,), (1, 2)):
        trained = predict(weighted(3, True, 1, 3), Stack(LIMIT, base_layers=base), ORDERED)
        yield same(
            f"accuracy with a trained base in layers {base}, n = 3, weights 1, 3",
            1.0,
            trained.accuracy,
            regime="limit",
        )


@claim("what two tied layers need of the weights, with ever more facts", source=SOURCE)
def limits(run: Run) -> Iterator[Row]:
    sizes = (10**4, 10**5, 10**6)
    for known, stays in itertools.product((True, False), (True, False)):
        where = f"limit, {'known' if known else 'fresh'}, attention {'stays' if stays else 'is read only'}"
        every = two_layers(math.inf, 1.0, known=known, attention_stays=stays).threshold
        gaps = [abs(two_layers(n, 1.0, known=known, attention_stays=stays).threshold - every) for n in sizes]
        slope, _ = fitted_slope(sizes, gaps, 0.0)
        yield close(
            "slope of log |weight of hop 2 - its limit| in log n, hop 1 at 1",
            -1.0,
            slope,
            asymptotic(1e-2, "the next order is 1/n below the first, and n is at least 1e4"),
            regime=where,
            note=f"the limit is {every:.4f}",
        )


@claim(
    "no other order of layers composes",
    source=SOURCE,
    proof="TwoLayers.hop2_not_above_does_not_compose, TwoLayers.listed_rules_do_not_compose_in_one_layer",
)
def other_orders(run: Run) -> Iterator[Row]:
    n, rules = (
        3,
        [r.name for r in merging.RULES.values() if r.label_blind and not r.needs_data and not r.routed],
    )
    stack = Stack(Finite(dimension=16, width=64, attention="softmax", seed=run.seed))
    for name, places in OTHER_ORDERS.items():
        placement = dict(zip(ORDERED, places, strict=True))
        best, moved = 0.0, 0.0
        for rule in rules if run.thorough else ("sum", "ties", "linear"):
            found = list(relabelled(n, rule, stack, placement))
            best = max(best, float(np.mean([one.accuracy for one in found])))
            outputs = np.stack([answers(one, n) for one in found])
            moved = max(moved, float(np.ptp(outputs, axis=0).max()) / max(one.tie for one in found))
        where = "finite d=16 m=64, softmax attention, n = 3"
        yield at_most(f"n x accuracy over all relabellings, {name}", 1.0, n * best, ROUNDING, regime=where)
        yield at_most(
            f"change of a z-output between relabellings in units of its rounding, {name}",
            1.0,
            moved,
            ROUNDING,
            regime=where,
        )
    for places in PARTLY:
        partly = predict(weighted(n, False, 1, 3), STACK, dict(zip(ORDERED, places, strict=True)))
        yield same(
            f"accuracy, hop 1 in layers {places[0]}, hop 2 in {places[1]}, weights 1, 3",
            1.0,
            partly.accuracy,
            regime="limit, fresh, n = 3",
            note="part of hop 2 lies above part of hop 1",
        )


@claim(
    "L hops compose in L layers, in their order only",
    source=SOURCE,
    proof="ManyLayers.layers_compose, ManyLayers.one_weight_for_all, ManyLayers.broken_link_does_not_compose",
)
def many_layers(run: Run) -> Iterator[Row]:
    n, lower = 3, (0.3, 2.0, 0.7)
    for hops in (2, 3, 4):
        stack, weights = Stack(LIMIT, count=hops), lower[: hops - 1]
        in_order = {f"hop{k}": (k,) for k in range(1, hops + 1)}
        last = threshold(hops_in_a_row(hops, n, (*weights, 1.0)), stack, in_order, f"hop{hops}")
        where = f"limit, fresh, n = {n}, weights {', '.join(map(str, weights))} below"
        for factor, right in ((1.001, 1.0), (0.999, 0.0)):
            found = {
                predict(hops_in_a_row(hops, n, (*weights, factor * last), sigma), stack, in_order).accuracy
                for sigma in itertools.permutations(range(n))
            }
            text = f"accuracies over all relabellings, {hops} hops, the last at {factor:g} of B / own"
            yield same(text, {right}, found, regime=where, note=f"B / own is {last:.4g}")
    for order in itertools.permutations((1, 2, 3)):
        placement = {f"hop{k}": (layer,) for k, layer in enumerate(order, start=1)}
        three = predict(hops_in_a_row(3, 2, (1.0, 3.0, 9.0)), Stack(LIMIT, count=3), placement)
        lead = np.abs(three.margins(["y3_0", "y3_1"])).max() > three.tie
        yield same(
            f"hops 1, 2, 3 in layers {', '.join(map(str, order))}: compose; else the last answers tie",
            (order == (1, 2, 3),) * 2,
            (three.accuracy == 1.0, bool(lead)),
            regime="limit, fresh, n = 2, weights 1, 3, 9",
        )


@claim("untied labels are chance", source=SOURCE, proof="TwoLayers.untied_labels_do_not_compose")
def untied(run: Run) -> Iterator[Row]:
    n, regime = 3, Finite(dimension=16, width=64, seed=run.seed)
    stack = Stack(regime, tied=False)
    right = [
        rearranged(n, sigma, arrangement, stack).accuracy
        for sigma, arrangement in itertools.product(itertools.permutations(range(n)), repeat=2)
    ]
    yield at_most(
        "n x accuracy over all relabellings and arrangements of the labels' vectors",
        1.0,
        n * float(np.mean(right)),
        ROUNDING,
        regime="finite d=16 m=64, n = 3, fresh, weights 1, 3",
    )
    found = predict(weighted(4, False, 1, 3), Stack(LIMIT, tied=False), ORDERED)
    yield close(
        "margin among the z, in units of its rounding",
        0.0,
        float(np.abs(found.margins([f"z{i}" for i in range(1, 5)])).max() / found.tie),
        algebraic(operations=1 / np.finfo(float).eps),
        regime="limit, fresh, n = 4",
    )


@claim("finite stacks against their limit", source=SOURCE)
def finite(run: Run) -> Iterator[Row]:
    n, d, draws = 8, 512, 60 if run.thorough else 12
    composition = weighted(n, False, 1, 3)
    limit = Stack(LIMIT, unembedding=True)
    derived = spread(composition, limit, ORDERED)
    margin, rival = derived.margins[0], derived.rivals[:1]
    error = derived.standard_error(dimension=d)[0]
    found = [
        predict(
            composition,
            Stack(WidthLimit(dimension=d, seed=100 * run.seed + draw), unembedding=True),
            ORDERED,
        )
        for draw in range(draws)
    ]
    where = f"width limit, d = {d}, n = {n}, fresh, weights 1, 3, scores by the embeddings"
    yield close(
        f"mean margin of z1 over {rival[0]} over {draws} draws",
        margin,
        float(np.mean([one.margins(rival)[0] for one in found])),
        statistical(error / math.sqrt(draws)),
        regime=where,
    )
    # every other rival is further away in the limit
    expected = 1 - (2 * n - 1) * math.erfc(margin / error / math.sqrt(2)) / 2
    share = float(np.mean([one.accuracy for one in found]))
    yield at_most(
        f"share wrong over {draws} draws",
        1 - expected,
        1 - share,
        statistical(math.sqrt(expected * (1 - expected) / draws)),
        regime=where,
        note="bound: a normal tail for each rival; prompts of one draw count once",
    )


def hops_in_a_row(
    hops: int, facts: int, weights: tuple[float, ...], sigma: tuple[int, ...] | None = None
) -> Composition:
    """x_i R1 -> y1_sigma(i) and y(k-1)_j Rk -> yk_j, fresh facts, asked x_i R1 .. R(hops); chains from 0."""
    names = [[f"{'x' if k == 0 else f'y{k}'}_{i}" for i in range(facts)] for k in range(hops + 1)]
    first = [names[1][j] for j in sigma or range(facts)]
    answers = [first, *names[2:]]
    adapters = tuple(
        Adapter(f"hop{k + 1}", tuple(map(Fact.of, names[k], [f"R{k + 1}"] * facts, answers[k])))
        for k in range(hops)
    )
    world = World.of((), [fact for adapter in adapters for fact in adapter.facts])
    relations = tuple(f"R{k}" for k in range(1, hops + 1))
    asked = tuple(question(world, Prompt(name, relations), adapters, "hops") for name in names[0])
    return Composition(f"{hops} hops", world, adapters, Merge("sum", weights), asked)


def relabelled(
    facts: int, rule: str, stack: Stack, placement: Mapping[str, tuple[int, ...]]
) -> Iterator[StackPrediction]:
    """Every relabelling, in one draw."""
    for sigma in itertools.permutations(range(facts)):
        yield predict(pair(facts, False, merge=Merge(rule), sigma=sigma), stack, placement)


def answers(found: StackPrediction, facts: int) -> np.ndarray:
    """Scores of z_1 .. z_n, (question, answer), questions in an order that sigma does not move."""
    columns = [found.composition.world.entities.index(f"z{i}") for i in range(1, facts + 1)]
    order = np.argsort([str(question.prompt) for question in found.questions])
    return found.output[order][:, columns]


def rearranged(
    facts: int, sigma: tuple[int, ...], arrangement: tuple[int, ...], stack: Stack
) -> StackPrediction:
    """Untied labels whose n vectors for the y are given out in another order."""
    composition = weighted(facts, False, 1, 3, sigma=sigma)
    names = composition.world.entities
    tokens = tuple(dict.fromkeys(token for prompt in composition.prompts for token in prompt.tokens))
    directions = drawn(stack, tokens, names)
    rows = np.array([names.index(f"y{i}") for i in range(1, facts + 1)])
    directions.labels[rows] = directions.labels[rows[list(arrangement)]]
    return predict(composition, stack, ORDERED, directions)
