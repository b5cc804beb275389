"""Merge rules: Theorem 3 rule by rule and where it fails, gauges, weights, zero rows (merging.md)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from toytransformer import merging as rules
from toytransformer import symmetry
from toytransformer.compositions import Merge, Prompt, question
from toytransformer.ledger.pair import C1, C2, LIMIT, Drawn, dense, is_top, outcome, pair, parts
from toytransformer.ledger.registry import Row, Run, algebraic, claim, close, same, statistical
from toytransformer.prediction import Prediction, base_output, predict, train, wanted_shift
from toytransformer.regimes import Finite, Regime

THEOREM = "Theorem 3"


def data_free() -> dict[str, Merge]:
    """Every rule without data under its defaults, and the variants the paper or merging.md name."""
    every = {name: Merge(name) for name, rule in rules.RULES.items() if not rule.needs_data}
    return every | {
        "arrow-products, T ~ sqrt(m)": Merge("arrow-products", options={"temperature_scaling": "sqrt-width"}),
        "arrow-products, top 1": Merge("arrow-products", options={"top_k": 1}),
        "arrow-factors, T ~ sqrt(m)": Merge("arrow-factors", options={"temperature_scaling": "sqrt-width"}),
        "knots, inner sum": Merge("knots", options={"inner": "sum"}),
        "lori-d, linear": Merge("lori-d", options={"combine": "linear"}),
    }


def exact(predicted: Prediction) -> bool:
    """Whether some question's output is its one-hot right answer, up to rounding."""
    names = predicted.composition.world.entities
    right = np.eye(len(names))[[names.index(q.correct) for q in predicted.composition.questions]]
    return bool((np.abs(predicted.output - right).max(1) <= predicted.tie).any())


@claim(
    "known facts do not compose under any rule",
    source=f"{THEOREM}, eq. 26-28",
    proof="OneFactMerging.lin_exact_fails, Arrow.eq28_known_fails, Arrow.products_known_fail",
)
def theorem_three(run: Run) -> Iterator[Row]:
    network = Drawn(dimension=1024, width=2048, seed=run.seed)
    cases = data_free() | {name: Merge(name) for name in ("cat-fitted", "adaptive", "lorahub")}
    for name, merge in cases.items():
        rule = rules.resolve(merge.rule)
        predictions, note = [], ""
        for n in (1, 2, 10):
            composition = pair(n, merge=merge, examples=2 if rule.needs_data else 0)
            if rule.adapter_kind == "frozen-read":
                # A random read of few columns leaks c_j + O(rank^-1/2), which lets z win by luck.
                ranked = tuple(replace(adapter, rank=512) for adapter in composition.adapters)
                composition, note = replace(composition, adapters=ranked), "rank 512"
            predictions.append(predict(composition, network))
        if rule.routed:
            note = f"spectral gap at n = 10: {predictions[-1].merged.spectral_gap:.2g}"
        measured = f"exact {any(map(exact, predictions))}, accuracy " + ", ".join(
            f"{p.accuracy:g}" for p in predictions
        )
        expected = "exact False, accuracy 0, 0, 0"
        yield same(f"{name}, n = 1, 2, 10", expected, measured, regime="finite d=1024 m=2048", note=note)


@claim(
    "CAT with every pair of weights",
    source=f"{THEOREM}, eq. 26",
    proof="OneFactMerging.cat_exact_fails, ManyFacts.eq25_never_top1",
)
def cat_weights(run: Run) -> Iterator[Row]:
    grid = np.linspace(-4, 4, 161 if run.thorough else 41)
    weights = np.array(list(itertools.product(grid, repeat=2)))
    for n, known in itertools.product((1, 2, 3), (True, False)):
        composition = pair(n, known)
        names = composition.world.entities
        z = np.array([names.index(f"z{i + 1}") for i in range(n)])
        base, added = parts(composition)
        output = base + np.tensordot(weights, added, 1)
        exactly = (np.abs(output - np.eye(len(names))[z]).max(-1) <= 1e-12).any()
        right = is_top(output, z)
        facts = f"n = {n} {'known' if known else 'fresh'}"
        measured = f"exact {bool(exactly)}, argmax {bool(right.any())}"
        note = f"all right under {right.all(1).sum()} of {len(weights)} pairs of weights in [-4, 4]"
        yield same(
            f"{facts}: right for some weights",
            f"exact False, argmax {n == 1}",
            measured,
            regime="limit",
            note=note,
        )
        if n == 1:
            a1, a2 = weights.T
            stated = a2 * C2 > (np.maximum(np.abs(a1) * C1, 1.0) if known else np.maximum(a1 * C1, 0.0))
            text = f"{facts}: exceptions to a2 c2 > {'max(|a1| c1, 1)' if known else 'max(a1 c1, 0)'}"
            yield same(text, 0, int((stated != right[:, 0]).sum()), regime="limit")
    predicted = predict(pair(1, False, merge=Merge("sum", (0.0, 1 / C2))), LIMIT)
    note = "without adapter 1, the second hop's adapter alone: the theorem needs a1 != 0"
    yield same("n = 1 fresh, weights 0, 1/c2: exactly i_z", True, exact(predicted), regime="limit", note=note)


@claim(
    "one prompt right and another unharmed",
    source=f"{THEOREM}, eq. 26-27",
    proof="OneFactMerging.cat_efficacy_locality",
)
def efficacy_locality(run: Run) -> Iterator[Row]:
    plain = pair(1)
    asked = (*plain.questions, question(plain.world, Prompt("u1", ("R1", "R2")), group="other-entity"))
    both = replace(plain, questions=asked)
    names = plain.world.entities
    z, w = names.index("z1"), names.index("w1")
    base, added = parts(both)
    equal = abs(float(added[1, 0, z] - added[1, 1, z]))
    yield close("hypothesis: c2 is the same on x R1 R2 and u R1 R2", 0.0, equal, algebraic(), regime="limit")
    grid = np.linspace(-4, 4, 161 if run.thorough else 81)
    output = base + np.tensordot(np.array(list(itertools.product(grid, repeat=2))), added, 1)
    right, kept = is_top(output[:, 0], z), is_top(output[:, 1], w)
    note = f"z right under {right.sum()} of {len(output)} pairs of weights, u unharmed under {kept.sum()}"
    yield same("CAT: pairs of weights that do both", 0, int((right & kept).sum()), regime="limit", note=note)

    def does_both(merge: Merge, gauge: str, regime: Regime = LIMIT) -> bool:
        hop1, hop2 = both.adapters
        spec = replace(both, adapters=(hop1, replace(hop2, gauge=gauge)), merge=merge)
        return predict(spec, regime).strict_accuracy == 1

    escape = Merge("linear", (1.0, 1.05))
    network = Finite(dimension=2**14, width=2**16, seed=run.seed)
    for label, regime in (("limit", LIMIT), ("finite d=16384 m=65536", network)):
        note = (
            "the paper says linear merging fails like CAT; lin_escapes: a2 (a1 c1 + a2 c2) > 1 on x, < 1 on u"
        )
        yield same(
            "linear, weights 1, 1.05, one sign",
            True,
            does_both(escape, "svd", regime),
            regime=label,
            note=note,
        )
        note = "the same two Delta W with the factors of adapter 2 negated (lin_flipped_fails)"
        yield same(
            "linear, weights 1, 1.05, the other sign",
            False,
            does_both(escape, "flipped", regime),
            regime=label,
            note=note,
        )
    positive = np.linspace(0, 4, 33 if run.thorough else 17).tolist()
    count = sum(does_both(Merge("linear", pair), "flipped") for pair in itertools.product(positive, repeat=2))
    yield same("linear, the other sign: pairs of weights in [0, 4] that do both", 0, count, regime="limit")


def in_gauge(n: int, merge: Merge, regime: Regime, transform: np.ndarray, known: bool = True) -> float:
    """Share of n two-hop prompts answered rightly when adapter 2 is put in another gauge than "facts"."""
    composition = pair(n, known, gauge="facts")
    world, asked = composition.world, [q.prompt for q in composition.questions]
    rows = dict(zip(composition.prompts, regime.features(composition.prompts).values, strict=True))
    hop1, hop2 = (train(adapter, world, rows) for adapter in composition.adapters)
    shift = rules.merge((hop1, hop2.regauge(transform)), merge).shift(np.stack([rows[p] for p in asked]))
    right = np.array([world.entities.index(q.correct) for q in composition.questions])
    return float(is_top(base_output(world, asked) + shift, right).mean())


def gauges(n: int, weights: tuple[float, float], regime: Regime) -> str:
    """The same two adapters under eq. 27 in three gauges, and under eq. 26 with the same weights."""
    eye, linear = np.eye(n), Merge("linear", weights)
    cases = {
        "aligned": in_gauge(n, linear, regime, eye),
        "permuted": in_gauge(n, linear, regime, np.roll(eye, 1, axis=1)),
        "negated": in_gauge(n, linear, regime, -eye),
        "CAT": in_gauge(n, Merge("sum", weights), regime, eye),
    }
    return ", ".join(f"{name} {share:g}" for name, share in cases.items())


@claim(
    "linear merging composes where columns align",
    source=f"{THEOREM}, eq. 27; 5a",
    proof="OneFactMerging.cat_linear_separation, LinearComposes.lin_K_of_K",
)
def failure(run: Run) -> Iterator[Row]:
    expected = "aligned 1, permuted 0, negated 0, CAT 0"
    note = (
        "the paper says Theorem 3 covers linear merging; cross terms B2 A1^T answer x_j by z_j in one gauge"
    )
    for k, weights in ((2, (1.2, 1.5)), (5, (1.2, 1.5)), (10, (1.5, 2.0)), (100, (1.5, 2.0))):
        text = f"K = {k} known facts, weights {weights[0]}, {weights[1]}: share right"
        yield same(text, expected, gauges(k, weights, LIMIT), regime="limit", note=note)
    predicted = symmetry.predict(lambda k: pair(k, gauge="facts", merge=Merge("linear", (1.5, 2.0))), 10**6)
    yield same("aligned, K = 1000000", "correct", outcome(predicted), regime="limit, by symmetry")
    seeds = range(run.seed, run.seed + (12 if run.thorough else 4))
    each = {gauges(2, (1.2, 1.5), Drawn(dimension=768, width=6144, seed=seed)) for seed in seeds}
    text = f"K = 2, weights 1.2, 1.5, each of {len(seeds)} seeds"
    yield same(text, expected, " / ".join(sorted(each)), regime="finite d=768 m=6144", note=note)
    weights = np.linspace(0, 4, 17).tolist()
    best = max(
        in_gauge(2, Merge("linear", w), LIMIT, -np.eye(2)) for w in itertools.product(weights, repeat=2)
    )
    yield same(
        "negated, K = 2: most right, weights in [0, 4]", 0.0, best, regime="limit", note="lin_wrong_gauge"
    )


@claim(
    "LoraHub's fitted weights compose where columns align",
    source=f"{THEOREM}, Huang et al.; 5a",
    proof="LinearComposes.lin_K_of_K",
)
def lorahub(run: Run) -> Iterator[Row]:
    aligned = pair(2, False, gauge="facts", examples=2, merge=Merge("lorahub"))
    predicted = predict(aligned, LIMIT)
    weights = ", ".join(f"{w:.3f}" for w in predicted.merged.details["weights"])
    note = f"2 fresh facts, fitted on 2 other chains: weights {weights}; the paper says it fails"
    yield same("aligned columns", "correct", outcome(predicted), regime="limit", note=note)
    # Singular values tie here, so "svd" is as arbitrary as any rotation: draw one for each adapter.
    draws = 8
    accuracy = [
        predict(
            replace(
                aligned,
                adapters=tuple(
                    replace(adapter, gauge=f"random:{2 * draw + i}")
                    for i, adapter in enumerate(aligned.adapters)
                ),
            ),
            LIMIT,
        ).accuracy
        for draw in range(draws)
    ]
    note = f"mean accuracy over the draws {sum(accuracy) / draws:.2f}: the same updates in other factors"
    yield same(
        f"columns turned at random, {draws} draws: right in every one",
        False,
        min(accuracy) == 1,
        regime="limit",
        note=note,
    )


@claim(
    "a cyclic pair composes in both directions",
    source=f"{THEOREM}, below eq. 26",
    proof="Answers.both_directions_possible",
)
def both_directions(run: Run) -> Iterator[Row]:
    note = "the paper says weights right in one direction would not generalize to both; x -> y -> x does"
    for weights, expected in (((1.8, 1.8), "correct"), ((1.0, 1.0), "old")):
        predicted = predict(pair(1, name="both-directions", merge=Merge("sum", weights)), LIMIT)
        text = f"r1(x) = y, r2(y) = x, CAT weights {weights[0]}, {weights[1]}"
        yield same(text, expected, outcome(predicted), regime="limit", note=note)


# --- gauges and weights ---------------------------------------------------------------------------


@claim(
    "which rules depend on the gauge",
    source="merging.md fact 1; eq. 27-28 (R5)",
    proof="MergeRules.cat_gauge_invariant, MergeRules.lin_not_gauge_invariant",
)
def gauge_table(run: Run) -> Iterator[Row]:
    network = Drawn(dimension=64, width=256, seed=run.seed)
    rng = np.random.default_rng(run.seed)
    rotation, _ = np.linalg.qr(rng.standard_normal((2, 2)))
    transform = rotation * np.array([0.5, 2.0])
    cases = {name: Merge(name) for name in rules.RULES} | {
        "lori-d": Merge("lori-d", options={"combine": "linear"})
    }
    for name, merge in cases.items():
        rule = rules.resolve(merge.rule)
        examples = 2 if rule.needs_data else 0
        predicted = predict(pair(2, examples=examples, merge=merge), network)
        rank = predicted.adapters[1].rank
        full = np.eye(rank)
        full[:2, :2] = transform
        moved = [_moved(predicted, merge, network, matrix) for matrix in (full, -np.eye(rank))]
        # Rounding of a few SVDs on factors of condition 4, against changes of order one.
        room = algebraic(1.0, 1e6).size
        measured = "invariant" if max(moved) <= room else "moves"
        # How much of rounding is left depends on the number of threads; it is nobody's measurement.
        general, sign = ("only rounding" if change <= room else f"{change:.1e}" for change in moved)
        note = f"relative change under a general gauge of adapter 2: {general}, under a sign: {sign}"
        yield same(
            name,
            "invariant" if rule.gauge_invariant else "moves",
            measured,
            regime="finite d=64 m=256",
            note=note,
        )


def _moved(predicted: Prediction, merge: Merge, network: Drawn, transform: np.ndarray) -> float:
    """Relative change of the merge's shift on every prompt when adapter 2 changes gauge."""
    composition = predicted.composition
    features = network.features(composition.prompts, neurons=True)
    rows = dict(zip(composition.prompts, features.values, strict=True))
    shown = composition.examples
    context = rules.MergeContext(
        rng_seed=network.seed,
        logit_scale=features.logit_scale,
        example_features=np.stack([rows[fact.prompt] for fact in shown]) if shown else None,
        example_targets=wanted_shift(composition.world, shown) if shown else None,
    )
    first, second = predicted.adapters
    before, after = (
        rules.merge(adapters, merge, context).shift(features.values)
        for adapters in ((first, second), (first, second.regauge(transform)))
    )
    return float(np.abs(after - before).max() / np.abs(before).max())


@claim(
    "a sign flip turns eq. 27's mixture",
    source="merging.md fact 1; eq. 27 (R5)",
    proof="MergeRules.lin_flip_diff",
)
def sign_flip(run: Run) -> Iterator[Row]:
    for gauge, c1, c2 in (("svd", C1 + C2, C1 + C2), ("flipped", C1 - C2, C2 - C1)):
        plain = pair(1, False, merge=Merge("linear"))
        hop1, hop2 = plain.adapters
        predicted = predict(replace(plain, adapters=(hop1, replace(hop2, gauge=gauge))), LIMIT)
        for answer, expected in (("y1", c1 / 4), ("z1", c2 / 4)):
            text = f"{answer[0]} on x R1 R2, adapter 2 {'as it is' if gauge == 'svd' else 'negated'}"
            measured = predicted.coefficient(0, answer)
            yield close(
                text, expected, measured, algebraic(), regime="limit", note="(c1 +- c2)/4 at weights 1/2, 1/2"
            )


@claim(
    "an adapter merged with itself at 1/2, 1/2",
    source="merging.md fact 2",
    proof="MergeRules.cat_is_concat, MergeRules.lin_expand",
)
def self_merge(run: Run) -> Iterator[Row]:
    predicted = predict(pair(2), Drawn(dimension=64, width=256, seed=run.seed))
    adapter = predicted.adapters[0]
    delta = adapter.delta()
    multiples = {"sum": 1.0, "linear-peft": 2.0, "linear": 1.0, "ties": 0.5, "dare-ties": 0.5, "knots": 0.5}
    for name, expected in multiples.items():
        options = {"density": 1} if "density" in rules.resolve(name).options else {}
        merged = dense(rules.merge((adapter, adapter), Merge(name, (0.5, 0.5), options)))
        multiple = float(np.sum(merged * delta) / np.sum(delta**2))
        off = float(np.abs(merged - multiple * delta).max() / np.abs(delta).max())
        text = f"{name}{', density 1' if options else ''}: multiple of the adapter"
        measured = multiple if off <= algebraic().size else float("nan")
        yield close(
            text,
            expected,
            measured,
            algebraic(),
            regime="finite d=64 m=256",
            note="and nothing but a multiple",
        )


# --- zero rows and random masks -------------------------------------------------------------------


@claim(
    "an answer no adapter was trained on stays",
    source="theory.md 5b",
    proof="ZeroRows.zero_rows_keep_old_answer",
)
def no_ripple(run: Run) -> Iterator[Row]:
    network = Drawn(dimension=64, width=256, seed=run.seed)
    made = {
        "new-adapter": "learns new answers from its examples",
        "adaptive-random": "random write directions",
    }
    for name, rule in rules.RULES.items():
        composition = pair(2, examples=2 if rule.needs_data else 0, merge=Merge(name))
        predicted = predict(composition, network)
        world = composition.world
        facts = [fact for adapter in composition.adapters for fact in adapter.facts]
        untouched = ~wanted_shift(world, facts).any(0)
        base = base_output(world, [q.prompt for q in composition.questions])
        moved = float(np.abs((predicted.output - base)[:, untouched]).max())
        if name in made:
            yield same(
                f"{name} is an exception", True, moved > 1e-3, regime="finite d=64 m=256", note=made[name]
            )
        else:
            note = f"largest change among {untouched.sum()} such answers on the two-hop prompts"
            yield close(name, 0.0, moved, algebraic(), regime="finite d=64 m=256", note=note)


@claim("DARE is unbiased", source="merging.md, DARE")
def dare(run: Run) -> Iterator[Row]:
    network = Drawn(dimension=64, width=256, seed=run.seed)
    composition, density, seeds = pair(2), 0.5, 2000 if run.thorough else 400
    adapters = predict(composition.with_merge(Merge("dare")), network).adapters
    asked = network.features(composition.prompts, neurons=True).values[-2:]
    drawn = [
        rules.merge(adapters, Merge("dare", options={"seed": seed, "density": density})).shift(asked)
        for seed in range(seeds)
    ]
    # Variance of sum_k D_ek mask_k phi_k / density, mask ~ Bernoulli(density) independent over k, adapters.
    variance = sum((asked**2) @ (a.delta() ** 2).T for a in adapters) * (1 - density) / density
    error = np.sqrt(variance / seeds)
    deviation = np.abs(np.mean(drawn, axis=0) - rules.merge(adapters, Merge("sum")).shift(asked))
    worst = np.unravel_index(np.argmax(deviation / np.where(error > 0, error, np.inf)), error.shape)
    text = f"mean of {seeds} masks minus the sum, the output furthest off"
    yield close(
        text, 0.0, float(deviation[worst]), statistical(float(error[worst])), regime="finite d=64 m=256"
    )
