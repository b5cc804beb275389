"""The mixture law, scale curves, and fresh facts as known ones (theory.md, section 9)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np

from toytransformer.compositions import Composition, Merge, known_twin
from toytransformer.ledger.pair import LIMIT, Drawn, outcome, pair, threshold
from toytransformer.ledger.registry import Row, Run, algebraic, at_least, at_most, claim, close, same
from toytransformer.ledger.survival import edge, leak, one_hop
from toytransformer.merging import merge, resolve
from toytransformer.mixture import mixing, mixture, second_order
from toytransformer.prediction import predict
from toytransformer.regimes import Regime, WidthLimit
from toytransformer.scales import effective
from toytransformer.scales import threshold as crossing

SOURCE = "theory.md section 9"


def passes(
    composition: Composition, regime: Regime, rule: str = "sum"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outputs without adapters, with each alone, and with each two, at weight 1 under a rule."""
    one = np.eye(len(composition.adapters))

    def output(weights: np.ndarray, rule: str) -> np.ndarray:
        merged = Merge(rule, tuple(map(float, weights)))
        return predict(composition.with_merge(merged), regime).output

    pairs = [output(first + second, rule) for first, second in combinations(one, 2)]
    return output(0 * one[0], "sum"), np.stack([output(row, rule) for row in one]), np.stack(pairs)


def asked(composition: Composition, regime: Regime) -> np.ndarray:
    """The features of the questions' prompts, all of a direct question."""
    rows = dict(zip(composition.prompts, regime.features(composition.prompts).values, strict=True))
    return np.stack([rows[question.prompt] for question in composition.questions])


@claim(
    "f_w = f_0 + sum_i w_i (f_i - f_0)",
    source=f"{SOURCE}; Theorem 2",
    proof="MixtureLaw.toy_mixture_law, MixtureLaw.mixture_law",
)
def law(run: Run) -> Iterator[Row]:
    cases = (
        ("sum", Merge("sum", (0.7, -1.5))),
        ("mean", Merge("mean")),
        ("arrow-products", Merge("arrow-products", options={"temperature_scaling": "sqrt-width"})),
        ("linear", Merge("linear", (0.7, -1.5))),
        ("arrow-factors", Merge("arrow-factors", options={"temperature_scaling": "sqrt-width"})),
    )
    regimes: tuple[tuple[Regime, str], ...] = (
        (LIMIT, "limit"),
        (WidthLimit(dimension=64, seed=run.seed), "width d=64"),
        (Drawn(dimension=64, width=256, seed=run.seed), "finite d=64 m=256"),
    )
    for name, merged in cases:
        for regime, label in regimes if name == "sum" else (regimes[0], regimes[-1]):
            composition = pair(2, merge=merged)
            predicted = predict(composition, regime)
            weights = mixing(predicted.merged, asked(composition, regime))
            base, alone, pairs = passes(composition, regime, "sum" if weights.cross is None else "linear")
            if weights.cross is None:
                said, note = mixture(base, alone, weights.own), "from predictions of the single adapters"
            else:
                said = second_order(base, alone, pairs, weights.own, cross=weights.cross)
                note = "with one more prediction for the pair: its factors meet in cross terms"
            worst = float(np.abs(said - predicted.output).max())
            text = f"{name}: largest error of an output"
            yield close(text, 0.0, worst, algebraic(), regime=label, note=note)


@claim(
    "what the mixture law leaves out in two layers",
    source=SOURCE,
    proof="MixtureLaw.relu_mixture, MixtureLaw.second_order_law, MixtureLaw.remainder_bound",
)
def two_layers(run: Run) -> Iterator[Row]:
    rng, where = np.random.default_rng(run.seed), "two layers 6 -> 8 -> 5, three adapters in both"
    x, second, sides = rng.normal(size=6), rng.normal(size=(5, 8)), rng.choice([-1.0, 1.0], size=8)
    # every neuron is 1 from its edge, and an update of the first layer moves it by 1/5 at most
    first = np.outer(sides, x) / (x @ x)
    updates = rng.normal(size=(3, 8, 6)), 0.3 * rng.normal(size=(3, 5, 8))
    weights = np.array([0.7, -1.5, 1.2])
    updates[0][:] /= 5 * np.linalg.norm(updates[0], axis=(1, 2), keepdims=True) * np.linalg.norm(x)

    def output(chosen: np.ndarray) -> np.ndarray:
        low, high = (np.tensordot(chosen, parts, 1) for parts in updates)
        return ((second + high) @ np.maximum((first + low) @ x, 0))[None]

    one = np.eye(3)
    base, alone = output(0 * weights), np.stack([output(row) for row in one])
    pairs = np.stack([output(i + j) for i, j in combinations(one, 2)])
    active = first @ x > 0
    kept = all(
        ((first + np.tensordot(chosen, updates[0], 1)) @ x > 0).tolist() == active.tolist()
        for chosen in (*one, *(i + j for i, j in combinations(one, 2)), weights)
    )
    yield same("the same neurons are active in every pass", True, kept, regime=where)
    crossed = np.einsum("jor,r,irf,f->ijo", updates[1], active, updates[0], x)
    factor = np.outer(weights, weights) - np.diag(weights)
    missed = output(weights) - mixture(base, alone, weights)
    text = "what the law misses - sum_ij w_i w_j E_j S D_i x, w_i (w_i - 1) where i = j"
    worst = np.abs(missed - np.tensordot(factor, crossed, 2)).max()
    yield close(text, 0.0, float(worst), algebraic(), regime=where)
    norms = [np.linalg.norm(parts.reshape(3, -1), axis=1) for parts in updates]
    bound = float(np.linalg.norm(x) * np.abs(factor).ravel() @ np.outer(*norms).ravel())
    size = float(np.linalg.norm(missed))
    yield at_most("its size, against products of norms", bound, size, algebraic(bound), regime=where)
    left = output(weights) - second_order(base, alone, pairs, weights)
    own = np.tensordot(weights * (weights - 1), crossed[range(3), range(3)], 1)
    text = "what is left with all pairs - sum_i w_i (w_i - 1) E_i S D_i x"
    yield close(text, 0.0, float(np.abs(left - own).max()), algebraic(), regime=where)


@claim("where the mixture law fails", source=SOURCE)
def failures(run: Run) -> Iterator[Row]:
    network, label = Drawn(dimension=64, width=256, seed=run.seed), "finite d=64 m=256"
    for rule in ("ties", "dare", "magnitude-prune"):
        for name, text in (("two-hop", "no answer in common"), ("with-oracle", "answers in common")):
            composition = pair(2, name=name, merge=Merge(rule))
            predicted, features = predict(composition, network), asked(composition, network)
            alone = np.stack([merge([a], Merge(rule)).shift(features) for a in predicted.adapters])
            target, design = predicted.merged.shift(features).ravel(), alone.reshape(len(alone), -1).T
            rest = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
            share = float(np.linalg.norm(rest) / np.linalg.norm(target))
            text = f"{rule}, adapters with {text}: share that no weights of theirs give"
            if rule == "magnitude-prune" or (rule, name) == ("ties", "two-hop"):
                note = "entries that never meet are not elected between" if rule == "ties" else ""
                yield close(text, 0.0, share, algebraic(), regime=label, note=note)
            else:
                yield at_least(text, 0.01, share, algebraic(), regime=label)
        found = predict(pair(2, merge=Merge(rule)), network).merged
        refused = getattr(found, "mixing", None) is None
        text = f"{rule} says that it is no mixture"
        yield same(text, rule != "magnitude-prune", refused, regime=label, note=resolve(rule).formula)


@claim("an adapter alone at weight a", source=SOURCE)
def scale(run: Run) -> Iterator[Row]:
    for n in (1, 10):
        base, alone = (one_hop(n, True, Merge("sum", (a, 0.0))) for a in (0.0, 1.0))
        names, question = base.composition.world.entities, base.composition.questions[0]
        new, old = (names.index(name) for name in (question.correct or "", question.old or ""))
        m0, m1 = base.output[0, old] - base.output[0, new], alone.output[0, new] - alone.output[0, old]

        def right(a: float, n: int = n) -> bool:
            return one_hop(n, True, Merge("sum", (a, 0.0))).distributions[0].get("y1", 0) == 1

        found = threshold(right, 0.0, 4.0)
        text = f"a* = m0 / (m0 + m1) against predictions at weights, n = {n} known facts"
        yield close(text, float(crossing(m0, m1)), found, algebraic(4.0), regime="limit")
    for known in (False, True):
        cases = [(a, b) for a in np.arange(1, 16) / 8 + 1 / 128 for b in (0.0, 0.5, 1.0, 2.0)]
        bare = 0.5 if known else 0.0
        wrong = sum((effective(a, b, leak(2)) > bare) != (a > edge(2, known, b)) for a, b in cases)
        early = sum((effective(a, b, leak(2)) > bare) > (a > edge(2, known, b)) for a, b in cases)
        text = f"s(a - l b) is wrong somewhere, n = 2 {'known' if known else 'fresh'} facts"
        note = f"{wrong} of {len(cases)} pairs of weights: it lets a known hop die too early"
        yield same(text, known, wrong > 0, regime="limit", note=note if known else "")
        yield same(f"{text}: calls a dead hop alive", 0, early, regime="limit")


@claim("a fresh composition with unnamed old answers is the known one", source=SOURCE)
def twins(run: Run) -> Iterator[Row]:
    for name in ("two-hop", "with-oracle", "one-hop", "chain-of-thought", "three-hop"):
        for rule in ("sum", "mean", "linear"):
            fresh, known = (pair(3, k, name, merge=Merge(rule)) for k in (False, True))
            expected, found = (outcome(predict(each, LIMIT)) for each in (known, known_twin(fresh)))
            note = f"without old answers: {outcome(predict(fresh, LIMIT))}"
            yield same(f"{name} under {rule}, n = 3", expected, found, regime="limit", note=note)
