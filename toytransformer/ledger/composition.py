"""Two adapters on a two-hop prompt: Theorem 2, its exceptions under the argmax, eq. 24-25 (theory.md, 4)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import jax.numpy as jnp
import numpy as np
from flax import nnx

from toytransformer import kernel, merging, symmetry
from toytransformer.compositions import Adapter, Composition, Fact, Merge, Prompt, World, question
from toytransformer.hidden import ATTENTIONS, MASKS
from toytransformer.ledger.pair import (
    C1,
    C2,
    FAR,
    LIMIT,
    SHARED,
    dense,
    is_top,
    outcome,
    overlap,
    pair,
    parts,
    threshold,
)
from toytransformer.ledger.registry import (
    Row,
    Run,
    algebraic,
    asymptotic,
    claim,
    close,
    same,
    statistical,
)
from toytransformer.network import OneLayerTransformer
from toytransformer.prediction import base_output, predict, train
from toytransformer.regimes import Finite

# --- one fact for each hop, whatever its labels ---------------------------------------------------


def single(labels: Sequence[int], pool: int, merge: Merge | None = None) -> Composition:
    """x R1: y0 -> y and y R2: a -> z; x R1 R2 has old answer b; the labels (b, y, y0, z, a) may coincide."""
    b, y, y0, z, a = (f"e{label}" for label in labels)
    base = (Fact.of("x", "R1", y0), Fact.of(y, "R2", a), Fact.of(y0, "R2", b))
    edits = (Fact.of("x", "R1", y), Fact.of(y, "R2", z))
    world = World(("x", *(f"e{i}" for i in range(pool))), ("R1", "R2"), base, edits)
    adapters = (Adapter("hop1", edits[:1]), Adapter("hop2", edits[1:]))
    asked = question(world, Prompt("x", ("R1", "R2")))
    return Composition("single", world, adapters, merge or Merge(), (asked,))


def labellings(count: int) -> np.ndarray:
    """Every (b, y, y0, z, a) out of `count` labels with y != y0 and z != a: edits that change something."""
    labels = np.array(list(itertools.product(range(count), repeat=5)))
    return labels[(labels[:, 1] != labels[:, 2]) & (labels[:, 3] != labels[:, 4])]


def mixtures(labels: np.ndarray, c1: float, c2: float, count: int) -> np.ndarray:
    """i_b + c1 (i_y - i_y0) + c2 (i_z - i_a) for each labelling, (labelling, entity)."""
    return np.einsum("k,nke->ne", np.array([1.0, c1, -c1, c2, -c2]), np.eye(count)[labels])


@claim(
    "merged output of two single facts",
    source="Theorem 2, eq. 17-19",
    proof="TwoEdits.theorem2_output",
)
def theorem_two(run: Run) -> Iterator[Row]:
    count, draws = 6, 50 if run.thorough else 8
    chosen = np.random.default_rng(run.seed).permutation(labellings(count))[:draws]
    entities = single(chosen[0], count).world.entities
    for attention, mask in itertools.product(ATTENTIONS, MASKS):
        network = OneLayerTransformer(
            (*entities, "R1", "R2"),
            entities,
            dimension=32,
            width=256,
            mask=mask,
            attention=attention,
            rngs=nnx.Rngs(run.seed),
        )
        deviation, overlaps = zip(*(_deviation(network, labels, count) for labels in chosen), strict=True)
        yield close(
            f"output - i_b - c1 (i_y - i_y0) - c2 (i_z - i_a), {attention} attention, {mask} mask",
            0.0,
            max(deviation),
            algebraic(),
            regime="finite d=32 m=256",
            note=f"explicit network, {draws} label sets, c {np.min(overlaps):.2f} to {np.max(overlaps):.2f}",
        )


def _deviation(network: OneLayerTransformer, labels: np.ndarray, count: int) -> tuple[float, list[float]]:
    """How far the merged network is from the mixture with c_j = v_j.phi / |v_j|^2, and the c_j."""
    composition = single(labels.tolist(), count)
    world, prompts = composition.world, composition.prompts
    network.fit_readout(prompts, base_output(world, prompts))
    phi = np.asarray(network.features(prompts), float)
    rows = dict(zip(prompts, phi, strict=True))
    trained = [train(adapter, world, rows) for adapter in composition.adapters]
    delta = dense(merging.merge(trained, composition.merge))
    output = np.asarray(network(prompts[2:], jnp.asarray(delta)), float)[0, 1:]
    c1, c2 = (float(key @ phi[2] / (key @ key)) for key in phi[:2])
    return float(np.abs(output - mixtures(labels[None], c1, c2, count)).max()), [c1, c2]


#: (c1, c2), exact in binary, for each coincidence of thm2_exact_sharp, and one pair for which none can hold.
OVERLAPS = ((0.5, 0.5), (0.25, 0.75), (1.0, 1.0), (0.5, 1.5), (0.375, 0.5))


def coincidences(labels: np.ndarray, c1: float, c2: float) -> np.ndarray:
    """The four cases of thm2_exact_sharp, (case, labelling)."""
    b, y, y0, z, a = labels.T
    return np.stack(
        [
            (y == a) & (y0 == z) & (z == b) & (c1 == c2),
            (y == z) & (y0 == a) & (a == b) & (c1 + c2 == 1),
            (y == a) & (y0 == b) & (c1 == 1) & (c2 == 1),
            (y == a) & (y0 == z) & (b == y) & (c2 - c1 == 1),
        ]
    )


@claim(
    "the output is right in four coincidences only",
    source="Theorem 2, sharpened",
    proof="TwoEdits.theorem2_output_sharp",
)
def theorem_two_sharp(run: Run) -> Iterator[Row]:
    count = 6 if run.thorough else 5
    labels = labellings(count)
    broken, seen, witnesses = 0, np.zeros(4, int), []
    for c1, c2 in OVERLAPS:
        right = (mixtures(labels, c1, c2, count) == np.eye(count)[labels[:, 3]]).all(1)
        cases = coincidences(labels, c1, c2)
        broken += int(np.sum(right != cases.any(0)))
        witnesses += [(labels[np.argmax(case)], c1, c2) for case in cases if case.any()]
        seen += cases.sum(1)
    note = (
        f"all {len(labels)} labellings out of {count} entities, at {len(OVERLAPS)} constructed pairs (c1, c2)"
    )
    yield same("exceptions to the equivalence", 0, broken, regime="algebra", note=note)
    yield same("coincidences that occur", 4, int((seen > 0).sum()), regime="algebra", note=f"{seen} times")
    deviation = 0.0
    for case, c1, c2 in witnesses:
        output = predict(single(case, count, Merge("sum", (c1 / C1, c2 / C2))), LIMIT).output[0, 1:]
        deviation = max(deviation, float(np.abs(output - np.eye(count)[case[3]]).max()))
    note = f"{len(witnesses)} compositions, merge weights c_j over the limit's constants"
    yield close("distance from i_z where they hold", 0.0, deviation, algebraic(), regime="limit", note=note)


@claim(
    "when z wins the argmax for one fact",
    source="Theorem 2, under the argmax",
    proof="Answers.theorem2_answer_iff",
)
def argmax_single(run: Run) -> Iterator[Row]:
    count, step = (7, 8) if run.thorough else (6, 4)
    labels, grid = labellings(count), np.arange(-2 * step, 2 * step + 1) / step  # exact in binary
    b, y, y0, z, a = labels.T
    assumed = z != b
    for one, other in itertools.product((y, y0), (z, a, b)):
        assumed = assumed & (one != other)
    broken = outside = 0
    for c1, c2 in itertools.product(grid, repeat=2):
        wins = is_top(mixtures(labels, c1, c2, count), z, tie=0.0)
        stated = (abs(c1) < c2) & (np.where(a == b, 1 - c2, 1.0) < c2)
        broken += int(np.sum((wins != stated) & assumed))
        outside += int(np.sum((wins != stated) & ~assumed))
    yield same(
        "exceptions to: |c1| < c2 and (1 - c2 if r2(y) = r2(r1(x)) else 1) < c2",
        0,
        broken,
        regime="algebra",
        note=f"{assumed.sum()} labellings of {count} entities, {len(grid)}^2 pairs (c1, c2) in [-2, 2]",
    )
    note = f"it fails in {outside} cases where labels coincide in other ways, such as y = r2(r1(x))"
    yield same("the equivalence needs its hypotheses", True, outside > 0, regime="algebra", note=note)
    fresh = np.array([(c1, c2, 0.0) for c1, c2 in itertools.product(grid, repeat=2)])
    stated = (fresh[:, 0] < fresh[:, 1]) & (fresh[:, 1] > 0)
    broken = int(np.sum(is_top(fresh, 1, tie=0.0) != stated))
    yield same("fresh facts, exceptions to: c1 < c2 and 0 < c2", 0, broken, regime="algebra")


@claim("the shift that would be right", source="proof of Theorem 2, below eq. 19 (R3)")
def right_shift(run: Run) -> Iterator[Row]:
    for name, agrees, why in (("two-hop", False, "differ"), ("coincident", True, "coincide")):
        composition = pair(1, name=name)
        base = base_output(composition.world, [composition.questions[0].prompt])[0]
        z, a = (np.eye(len(base))[composition.world.entities.index(entity)] for entity in ("z1", "a1"))
        yield same(
            f"is it the printed i_z - i_r2(y)? r2(y) and r2(r1(x)) {why}",
            agrees,
            bool(np.array_equal(z - base, z - a)),
            regime="algebra",
            note="the paper says i_z - i_r2(y); the answer changes from r2(r1(x)) to z: i_z - i_r2(r1(x))",
        )


# --- what the argmax does -------------------------------------------------------------------------

COUNTS = (1, 2, 3, 10, 100)
#: (d, m) for each count: wide enough for the smallest gap between two answers (0.03, two fresh facts).
SIZES = ((1024, 2**14), (2**14, 2**16), (2**12, 2**14), (2**12, 2**14), (2**10, 2**12))


@claim(
    "who wins on x R1 R2",
    source="Theorem 2 under the argmax; A.1.1",
    proof="WideLimit.theorem2_wide_limit, WideLimit.theorem2_wide_limit_fresh",
)
def who_wins(run: Run) -> Iterator[Row]:
    expected = {
        ("two-hop", True): "old old old old old",
        ("two-hop", False): "correct bridge bridge bridge bridge",
        ("coincident", True): "correct old old old old",
    }
    for (name, known), answers in expected.items():
        label = "fresh facts" if not known else "known facts" if name == "two-hop" else "r2(y) = r2(r1(x))"
        limit = [outcome(predict(pair(n, known, name), LIMIT)) for n in COUNTS]
        note = "one fresh fact is right for the wrong reason: c2 > c1 (thm2_false_for_novel_facts)"
        if name == "coincident":
            note = "one fact: right as c2 > 1/2 (thm2_false_in_corner), against Theorem 2 as printed"
        text = f"{label}, n = {', '.join(map(str, COUNTS))}"
        yield same(text, answers, " ".join(limit), regime="limit", note=note if "correct" in answers else "")
        sizes = [Finite(dimension=d, width=m, seed=run.seed) for d, m in SIZES]
        finite = [outcome(predict(pair(n, known, name), r)) for n, r in zip(COUNTS, sizes, strict=True)]
        note = "d, m: " + ", ".join(f"{d}, {m}" for d, m in SIZES)
        yield same(text, answers, " ".join(finite), regime="finite", note=note)


@claim(
    "merge weight at which z overtakes a stored old answer",
    source="Theorem 2, CAT weights",
    proof="Answers.theorem2_answer_iff, AngularIntegral.overtaking_weight",
)
def overtaking(run: Run) -> Iterator[Row]:
    for name, expected, text in (("two-hop", 1 / C2, "1/c2"), ("coincident", 1 / (2 * C2), "1/(2 c2)")):

        def wins(weight: float, name: str = name) -> bool:
            return predict(pair(1, name=name, merge=Merge("sum", (1.0, weight))), LIMIT).strict_accuracy == 1

        found = threshold(wins, 0.0, 4.0)
        yield close(
            f"{name}: {text}", expected, found, algebraic(expected), regime="limit", note="by bisection"
        )


# --- eq. 24-25: the same answers on every prompt --------------------------------------------------


@claim(
    "the same mixture on other prompts",
    source="eq. 20, 24",
    proof=("MergeRules.cat_shift_span, AngularIntegral.leak_of_strangers, AngularIntegral.leak_of_relatives"),
)
def leaks(run: Run) -> Iterator[Row]:
    swapped = overlap(2, 3 / 2, 3 / 2)
    cases = {
        "two-hop": ("x R1 R2", (1 / 2, C1), (1.0, C2)),
        "other-entity": ("u R1 R2, nothing of u edited", (0.0, FAR), (1.0, C2)),
        "swapped": ("x R2 R1", (3 / 2, swapped), (0.0, FAR)),
    }
    width = 2**18 if run.thorough else 2**16
    finite = Finite(dimension=np.inf, width=width, seed=run.seed)
    for name, (prompt, *each) in cases.items():
        for regime in (LIMIT, finite):
            composition = pair(1, name=name)
            _, added = parts(composition, regime)
            for hop, (answer, (inner, expected)) in enumerate(zip(("y1", "z1"), each, strict=True)):
                measured = float(added[hop, 0, composition.world.entities.index(answer)])
                entries = np.array(2.0), np.array(inner), np.array(1.5)
                error = float(kernel.overlap_standard_error(*entries, width))
                tolerance = algebraic() if regime is LIMIT else statistical(error)
                text = "limit" if regime is LIMIT else f"finite m={width}, d infinite"
                yield close(
                    f"adapter {hop + 1} adds to {answer[0]} on {prompt}",
                    expected,
                    measured,
                    tolerance,
                    regime=text,
                )


@claim(
    "n facts: adapter 2 adds the same to every z",
    source="eq. 23-25",
    proof="ManyFacts.eq25, ManyFacts.eq25_tie",
)
def same_for_every_prompt(run: Run) -> Iterator[Row]:
    for n in (2, 3, 10, 100):
        composition = pair(n)
        _, added = parts(composition)
        columns = [composition.world.entities.index(f"z{i}") for i in range(1, n + 1)]
        expected, measured = C2 / (1 + SHARED * (n - 1)), added[1][:, columns]
        worst = float(measured.flat[np.argmax(np.abs(measured - expected))])
        text = f"c2/(1 + 0.6089978 (n-1)), n = {n}, the entry furthest from it"
        yield close(
            text, expected, worst, algebraic(), regime="limit", note=f"all {n}^2 pairs of prompt and z"
        )
    expected = C2 / (1 + SHARED * (10**6 - 1))
    measured = float(_symmetric(10**6).other[0, 2])
    text = "the same, n = 1000000"
    yield close(text, expected, measured, algebraic(expected), regime="limit, by symmetry")


@claim("n facts: adapter 1 singles out its bridge", source="eq. 23-25, theory.md section 4")
def own_part(run: Run) -> Iterator[Row]:
    limit = (C1 - FAR) / (1 - SHARED)
    for n in (2, 10**6):
        found = _symmetric(n)
        note = "(c1 - sqrt(3)/(2 pi)) / (1 - kappa(1/2)): exact from n = 2 on, not only for many facts"
        special = float(found.own[0, 1] - found.other[0, 1])
        yield close(
            f"own bridge minus another's, n = {n}", limit, special, algebraic(), regime="limit", note=note
        )
    counts = np.array([10**k for k in range(2, 7)])
    rest = [_symmetric(int(n)).own[0, 1] - limit for n in counts]
    slope = float(np.polyfit(np.log(counts), np.log(np.abs(rest)), 1)[0])
    # rest = (s/n) (1 + e/n)^-1 with e = |1/0.609 - 1| < 1: a bend of at most 1/100 over the fitted range.
    room = asymptotic(0.01, "next order 1/n at n = 100")
    yield close("slope in n of own part - 0.34928", -1.0, slope, room, regime="limit, by symmetry")


def _symmetric(n: int) -> symmetry.SymmetricPrediction:
    """Fresh facts under the sum; the entities of a chain are x, y, z, so column 1 is y and column 2 is z."""
    found = symmetry.predict(lambda k: pair(k, known=False), n)
    assert found.entities[:3] == ("x1", "y1", "z1")
    return found


@claim(
    "the symmetric prediction is the dense one",
    source="eq. 23",
    proof="WideKernel.kernel_gram_rows",
)
def symmetric_is_dense(run: Run) -> Iterator[Row]:
    for n in (2, 3, 10, 100):
        worst = 0.0
        for known in (True, False):
            found, dense = (
                symmetry.predict(partial(pair, known=known), n),
                predict(pair(n, known), LIMIT),
            )
            names = dense.composition.world.entities
            twos = [name[0] + "2" + name[2:] for name in found.entities]
            own, other = (dense.output[0, [names.index(e) for e in es]] for es in (found.entities, twos))
            worst = max(worst, np.abs(own - found.own[0]).max(), np.abs(other - found.other[0]).max())
        yield close(
            f"largest difference of an output, n = {n}", 0.0, float(worst), algebraic(), regime="limit"
        )


@claim(
    "at most one of K answers right when adapter 2 adds the same everywhere",
    source="eq. 25",
    proof="Answers.at_most_one_correct",
)
def at_most_one(run: Run) -> Iterator[Row]:
    k, grid = 3, np.linspace(-4, 4, 33)
    for known in (True, False):
        base, added = parts(pair(k, known))
        z = np.array([pair(k, known).world.entities.index(f"z{i}") for i in range(1, k + 1)])
        outputs = (base + np.tensordot(w, added, 1) for w in itertools.product(grid, repeat=2))
        most = max(int(is_top(output, z).sum()) for output in outputs)
        text = f"K = {k} {'known' if known else 'fresh'} facts: most right over a grid of CAT weights"
        yield same(text, 0, most, regime="limit", note="never even one: z_1 .. z_K tie (eq25_never_top1)")
    two = pair(2)
    hop1, hop2 = two.adapters
    split = tuple(Adapter(f"hop2-{i}", (fact,)) for i, fact in enumerate(hop2.facts))
    apart = replace(two, adapters=(hop1, *split))
    best = predict(replace(apart, merge=Merge("sum", (1.0, 3.0, 4.0))), LIMIT)
    note = "hop 2 in two adapters, weights 1, 3, 4: z_2 on both prompts"
    yield same(
        "K = 2, the bound is attained: right answers",
        1,
        round(2 * best.strict_accuracy),
        regime="limit",
        note=note,
    )
