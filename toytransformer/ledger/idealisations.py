"""The idealisations of the paper's model, one by one: its base, its readout, its relations (theory.md, 8)."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from toytransformer import merging, symmetry
from toytransformer.adapters import LoRA, closed_form
from toytransformer.bases import ExactBase, TrainedBase, one_hot
from toytransformer.compositions import Composition, Fact, Merge, Prompt, World
from toytransformer.compositions.knowledge import DEGREES
from toytransformer.estimates import standard_error
from toytransformer.ledger.pair import LIMIT, Drawn, outcome, pair, threshold
from toytransformer.ledger.registry import (
    Row,
    Run,
    Tolerance,
    algebraic,
    at_most,
    claim,
    close,
    same,
    solver,
)
from toytransformer.network import OneLayerTransformer
from toytransformer.prediction import predict, train
from toytransformer.readout import Gram, Typed
from toytransformer.regimes import Finite, FullLimit, WidthLimit
from toytransformer.relabelling import average
from toytransformer.symmetry import SymmetricPrediction
from toytransformer.toy import Toy
from toytransformer.typed import fresh_threshold, trained_threshold

SOURCE = "theory.md section 8"
#: Chains and bystanders at which the claims about answers are checked.
COUNT = 20
LENGTHS = (1.0, 2.0)
#: Rounding of a symmetric prediction against a dense one: solves of condition below 1e4, scores of size 1.
ROUTES = Tolerance(1e-9, "algebraic", "solves of condition below 1e4 on either route, scores of size one")


def toy(t: float, length: float = 1.0, trained: bool = True) -> Toy:
    """The full limit with answers of one kind at cosine t and relations of a length."""
    return Toy(FullLimit(relation_length=length), TrainedBase() if trained else ExactBase(), Typed(t))


def many(model: Toy, facts: int = COUNT, name: str = "two-hop", **how: Any) -> SymmetricPrediction:
    """The prediction of n chains with as many bystanders as COUNT."""
    build = functools.partial(_built, name=name, how={"bystanders": COUNT, **how})
    return symmetry.predict(build, facts, model)


def _built(facts: int, name: str, how: dict) -> Composition:
    return pair(facts, name=name, gauge="facts", **how)


@claim("a readout of one-hot answers is the typed one at t = 0", source=SOURCE)
def at_zero(run: Run) -> Iterator[Row]:
    for rule in ("sum", "linear", "arrow-products"):
        composition, regime = pair(3, merge=Merge(rule)), Drawn(dimension=64, width=512, seed=run.seed)
        plain, typed = (predict(composition, model) for model in (regime, Toy(regime, ExactBase(), Typed(0))))
        equal = bool(np.array_equal(plain.output, typed.output)) and plain.tie == typed.tie
        yield same(f"{rule}: the same bits", True, equal, regime="finite d=64 m=512")


def _embedding(size: int, readout: np.ndarray, seed: int) -> np.ndarray:
    """Some U with U^T U = G, (direction, entity): the Cholesky factor under a random rotation."""
    rotation, _ = np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))
    return rotation @ np.linalg.cholesky(readout).T


def _features(model: Toy, composition: Composition) -> dict[Prompt, np.ndarray]:
    known = (fact.prompt for fact in composition.world.known)
    prompts = tuple(dict.fromkeys((*composition.prompts, *known)))
    return dict(zip(prompts, model.regime.features(prompts).values, strict=True))


def _fit(rows: Sequence[np.ndarray], targets: np.ndarray) -> np.ndarray:
    """The least-norm D with D phi = target, (direction, feature), by least squares."""
    return np.linalg.lstsq(np.stack(rows), targets, rcond=None)[0].T


def _dense(composition: Composition, phi: dict[Prompt, np.ndarray], vectors: np.ndarray) -> np.ndarray:
    """Scores by explicit matrices: base, updates and unembedding, the updates merged by the rule."""
    world, rule = composition.world, merging.resolve(composition.merge.rule)

    def stacked(facts: Sequence[Fact]) -> list[np.ndarray]:
        return [phi[fact.prompt] for fact in facts]

    def wanted(facts: Sequence[Fact]) -> np.ndarray:
        return one_hot(world, [fact.answer for fact in facts]) @ vectors.T

    base = _fit(stacked(world.known), wanted(world.known))
    loras = []
    for adapter in composition.adapters:
        changes = wanted(adapter.facts) - np.stack(stacked(adapter.facts)) @ base.T
        if rule.factor_wise:
            loras.append(closed_form(np.stack(stacked(adapter.facts)), changes))
            continue
        left, values, right = np.linalg.svd(_fit(stacked(adapter.facts), changes), full_matrices=False)
        rank = len(adapter.facts)
        loras.append(LoRA(left[:, :rank] * values[:rank], right[:rank].T))
    examples = composition.examples
    context = merging.MergeContext(
        example_features=np.stack(stacked(examples)),
        example_targets=wanted(examples) - np.stack(stacked(examples)) @ base.T,
    )
    merged = merging.merge(loras, composition.merge, context)
    asked = np.stack([phi[question.prompt] for question in composition.questions])
    return (asked @ base.T + merged.shift(asked)) @ vectors


@claim("adapters under a readout G are those of an explicit unembedding U, U^T U = G", source=SOURCE)
def every_rule(run: Run) -> Iterator[Row]:
    # at finite d no singular values tie, so that rules by singular vectors are determined
    regime = WidthLimit(dimension=64, seed=run.seed, relation_length=2.0)
    model = Toy(regime, TrainedBase(), Typed(0.4))
    how: dict[str, Any] = {"examples": 1, "bystanders": 2, "own_second": True}
    asked = [
        rule
        for rule in merging.RULES.values()
        if not (rule.needs_neurons or rule.fitted_by == "search") and rule.adapter_kind == "closed-form"
    ]
    world = pair(3, **how).world
    vectors = _embedding(len(world.entities), Typed(0.4).gram(world), run.seed)
    for rule in asked:
        options = {"temperature_scaling": "sqrt-width"} if rule.tempered else {}
        composition = pair(3, merge=Merge(rule.name, options=options), **how)
        found = predict(composition, model)
        expected = _dense(composition, _features(model, composition), vectors)
        gap = float(np.abs(found.output - expected).max())
        note = "base, updates and unembedding as dense matrices, by least squares"
        text = f"{rule.name}: largest difference of a score"
        yield close(text, 0.0, gap, ROUTES, regime="width d=64", note=note)


@claim("a trained base and typed adapters in the explicit network", source=SOURCE)
def explicit(run: Run) -> Iterator[Row]:
    composition, readout = pair(2, bystanders=1, own_second=True), Typed(0.5)
    world = composition.world
    known = (fact.prompt for fact in world.known)
    prompts = tuple(dict.fromkeys((*composition.prompts, *known)))
    tokens = tuple(dict.fromkeys(token for prompt in prompts for token in prompt.tokens))
    network = OneLayerTransformer(
        tokens,
        world.entities,
        dimension=32,
        width=256,
        lengths=dict.fromkeys(world.relations, 2.0),
        rngs=nnx.Rngs(run.seed),
    )
    facts = [fact.prompt for fact in world.known]
    phi = dict(zip(prompts, np.asarray(network.features(prompts), float), strict=True))
    answers = one_hot(world, [fact.answer for fact in world.known])
    network.readout[...] = jnp.asarray(_fit([phi[prompt] for prompt in facts], answers))
    rows = np.stack(list(phi.values()))
    room = solver(
        1e2 * 2.0**-52 * float(np.linalg.cond(rows @ rows.T)), "eps x condition of the features' Gram matrix"
    )
    questions = [question.prompt for question in composition.questions]
    outputs = dict(zip(prompts, np.asarray(network(prompts), float), strict=True))
    said = np.stack([outputs[prompt] for prompt in questions])
    base = TrainedBase().output(world, questions, phi)
    gap = float(np.abs(said - base).max())
    yield close("what the base says, W by least squares", 0.0, gap, room, regime="finite d=32 m=256")
    gram = readout.gram(world)
    vectors, shift = _embedding(len(gram), gram, run.seed), np.zeros_like(said)
    for adapter in composition.adapters:
        stored = [fact.prompt for fact in adapter.facts]
        new = one_hot(world, [fact.answer for fact in adapter.facts])
        changes = (new - np.stack([outputs[prompt] for prompt in stored])) @ vectors.T
        shift += np.stack([phi[p] for p in questions]) @ _fit([phi[p] for p in stored], changes).T
    expected = (said @ vectors.T + shift) @ vectors
    fitted, root = TrainedBase().fit(world, phi), readout.on(world)
    loras = [train(adapter, world, phi, base=fitted, coordinates=root) for adapter in composition.adapters]
    moved = merging.merge(loras, composition.merge).shift(np.stack([phi[p] for p in questions]))
    gap = float(np.abs(root.apply(root.apply(fitted.answers(questions)) + moved) - expected).max())
    note = "U is any root of G, rotated; the toy works in the symmetric one"
    yield close("merged scores, adapters on U", 0.0, gap, room, regime="finite d=32 m=256", note=note)


@claim("the symmetric prediction of typed toys is the dense one", source=SOURCE)
def symmetric(run: Run) -> Iterator[Row]:
    for degree, length in itertools.product(DEGREES, LENGTHS):
        model = toy(0.4, length)
        how: dict[str, Any] = {"degree": degree, "own_second": True}
        found = many(model, 7, **how)
        dense = predict(_built(7, "two-hop", {"bystanders": COUNT, **how}), model)
        names = {name: i for i, name in enumerate(dense.composition.world.entities)}
        columns = [names[name] for name in (*found.entities, *found.outside)]
        gap = np.abs(np.hstack([found.own, found.scores.beside])[0] - dense.output[0, columns]).max()
        old = dense.questions[0].old
        text = f"base {degree}, relations {length:g}x: largest difference of a score on x1 R1 R2"
        yield close(text, 0.0, float(gap), ROUTES, regime="limit")
        text = f"base {degree}, relations {length:g}x: old answer to x1 R1 R2"
        yield same(text, old, found.questions[0].old, regime="limit")


@claim("a trained base and typed adapters at finite width", source=SOURCE)
def finite(run: Run) -> Iterator[Row]:
    width = 2**17 if run.thorough else 2**14
    composition = pair(3, bystanders=2, own_second=True)
    for t, length in ((0.4, 2.0), (0.0, 1.0)):
        regime = Finite(dimension=math.inf, width=width, seed=run.seed, relation_length=length)
        drawn = predict(composition, Toy(regime, TrainedBase(), Typed(t)))
        limit, error = predict(composition, toy(t, length)).output, standard_error(drawn)
        worst = float(np.max(np.abs(drawn.output - limit)[error > 0] / error[error > 0]))
        text = f"t = {t:g}, relations {length:g}x: largest deviation from the limit, in its standard errors"
        room = Tolerance(5.0, "statistical", f"5 derived standard errors, {np.sum(error > 0)} scores")
        yield close(text, 0.0, worst, room, regime=f"finite d=inf m={width}")


COSINES = {
    "x R2": (Prompt("x", ("R2",)), lambda r: r + 1 / 2, lambda r: r + 1),
    "a stranger's y R2": (Prompt("y", ("R2",)), lambda r: r, lambda r: r + 1),
    "x R1": (Prompt("x", ("R1",)), lambda r: 1 / 2, lambda r: r + 1),
    "a stranger's u R1 R2": (Prompt("u", ("R1", "R2")), lambda r: r + r / 4, lambda r: r + (1 + r) / 4),
}


@claim("which prompt is nearest to x R1 R2", source=SOURCE)
def nearest(run: Run) -> Iterator[Row]:
    for length in LENGTHS:
        r, asked = length**2, Prompt("x", ("R1", "R2"))
        prompts = [prompt for prompt, _, _ in COSINES.values()]
        gram = FullLimit(relation_length=length).hidden_gram([asked, *prompts])
        norms = np.sqrt(np.diag(gram))
        found = dict(zip(COSINES, (gram[0] / norms / norms[0])[1:].tolist(), strict=True))
        for name, (_, inner, square) in COSINES.items():
            expected = inner(r) / math.sqrt(square(r) * (r + (1 + r) / 4))
            text = f"cosine of hidden states with {name}, relations {length:g}x"
            yield close(text, expected, found[name], algebraic(), regime="limit")
        hops = [name for name, (prompt, _, _) in COSINES.items() if prompt.hops == 1]
        best = max(hops, key=lambda name: found[name])
        yield same(f"nearest prompt of one hop, relations {length:g}x", "x R2", best, regime="limit")
        farther = found["a stranger's u R1 R2"] < found["x R2"]
        note = "with long relations other people's two-hop prompts are nearer than x's own R2"
        text = f"x R2 is nearer than a stranger's R1 R2, relations {length:g}x"
        yield same(text, length == 1, farther, regime="limit", note=note)


@claim("what a trained base says to x R1 R2", source=SOURCE)
def base_says(run: Run) -> Iterator[Row]:
    for degree, length in itertools.product(DEGREES, LENGTHS):
        found = many(toy(0.0, length), degree=degree, own_second=True).questions[0].old
        expected = "b1" if degree == "both" else "x1_own"
        text = f"base {degree}, which knows x's own R2, relations {length:g}x, n = {COUNT}"
        yield same(text, expected, found, regime="limit", note="b = r2(r1(x)), which it was told as such")
    untyped, typed = (many(toy(t), degree="one-hop").questions[0].old for t in (0.0, 0.4))
    text, note = (
        "base one-hop without x's own R2, t = ",
        "the old answer to x R1: a person, asked for a place",
    )
    yield same(f"{text}0", "y1_old", untyped, regime="limit", note=note)
    yield same(f"{text}0.4", None, typed, regime="limit", note="many places tie")


@claim("which kind answers a question of two hops", source=SOURCE)
def kinds(run: Run) -> Iterator[Row]:
    place = {"correct": 1 / COUNT, "edited": 1 - 1 / COUNT}
    for degree in ("nothing", "one-hop"):
        for t, length in ((0.0, 1.0), (0.0, 2.0), (0.3, 2.0), (0.6, 1.0)):
            found = many(toy(t, length), degree=degree)
            expected = place if t else {"bridge": 1.0}
            shares = {name: round(share, 6) for name, share in found.shares.items() if share}
            text = f"base trained, {degree}, t = {t:g}, relations {length:g}x, n = {COUNT}"
            note = "any of the n places, the bridge never" if t else "untyped: the bridge"
            yield same(text, expected, shares, regime="limit", note=note)
    for length in LENGTHS:
        for trained, known in ((False, False), (True, True)):
            begins = _threshold(length, trained, known)
            derived = (
                trained_threshold(COUNT, first=2 * COUNT, second=3 * COUNT, relation_length=length)
                if trained
                else fresh_threshold(COUNT, relation_length=length)
            )
            facts = "known facts, a trained base" if trained else "fresh facts, an exact base"
            text = f"t from which a place answers, {facts}, relations {length:g}x, n = {COUNT}"
            note = "bisected in predictions, against the closed form"
            yield close(text, derived, begins, ROUTES, regime="limit", note=note)
    for t in (0.3, 0.9):
        answer = outcome(many(toy(t, trained=False), degree="one-hop"))
        note = (
            "old and new answers are of one kind, so each adapter's sum over it is 0: t has nothing to weigh"
        )
        yield same(f"exact base, one-hop, t = {t:g}: answer", "bridge", answer, regime="limit", note=note)
    for length, t in itertools.product(LENGTHS, (0.0, 0.6)):
        answer = outcome(many(toy(t, length), degree="one-hop", own_second=True))
        note = "what the base says stays"
        text = f"base that knows x's own R2, t = {t:g}, relations {length:g}x"
        yield same(text, "old", answer, regime="limit", note=note)


def _threshold(length: float, trained: bool, known: bool) -> float:
    """The t at which the two-hop answer turns from the bridge to a place."""

    def place(t: float) -> bool:
        found = symmetry.predict(functools.partial(pair, known=known), COUNT, toy(t, length, trained))
        return found.shares["bridge"] == 0

    return threshold(place, 0.0, 0.95)


def tied_names(world: World, cosine: float) -> Gram:
    """A readout in which y_i and z_i lie together, cosine between 0 and 1, and all else apart."""
    place = {name: i for i, name in enumerate(world.entities)}
    matrix = np.eye(len(place))
    for name in world.entities:
        if (twin := name.replace("y", "z")) != name and twin in place:
            matrix[place[name], place[twin]] = matrix[place[twin], place[name]] = cosine
    return Gram(world.entities, matrix)


@claim("relabelling under other readouts and bases", source=f"{SOURCE}, section 5")
def relabelled(run: Run) -> Iterator[Row]:
    n, third = 3, Tolerance(1e-12, "algebraic", "a mean of at most n! shares 1/k, each exact to 1e-16")
    for rule, degree in itertools.product(("sum", "arrow-products"), ("nothing", "one-hop")):
        regime = WidthLimit(dimension=64, seed=run.seed, relation_length=2.0)
        model, merge = Toy(regime, TrainedBase(), Typed(0.4)), Merge(rule)
        build = functools.partial(_relabelled, n=n, merge=merge, degree=degree, bystanders=2)
        found = average(build, n, model)
        text = f"n x accuracy over all sigma, {rule}, trained base ({degree}), t = 0.4"
        yield at_most(text, 1.0, n * found.accuracy, third, regime="width d=64", note="the bound holds")
    merge, world = Merge("sum", (1.0, 3.0)), pair(n, False).world
    build = functools.partial(_relabelled, n=n, merge=merge, degree="nothing")
    for cosine, expected in ((0.0, 1 / n), (0.3, 1.0)):
        found = average(build, n, Toy(LIMIT, ExactBase(), tied_names(world, cosine)))
        text = f"accuracy over all sigma, sum 1, 3, fresh: y_i and z_i at cosine {cosine:g}"
        note = "outside the bound: this readout ties the bridge to the answer" if cosine else ""
        yield close(text, expected, found.accuracy, third, regime="limit", note=note)


def _relabelled(sigma: tuple[int, ...], n: int, merge: Merge, **how: Any) -> Composition:
    return pair(n, sigma=sigma, merge=merge, **how)


@claim("a million facts of a typed toy", source=SOURCE)
def million(run: Run) -> Iterator[Row]:
    n = 10**6
    found = many(toy(0.5, 2.0), n, degree="nothing")
    yield close("share of right answers is 1/n", 1 / n, found.accuracy, algebraic(1 / n), regime="limit")
    yield same("the others are other edited places", True, found.shares["edited"] > 0.99, regime="limit")
