"""Merge rules: each against an independent dense formula; laws of gauges, weights, labels and routing."""

import math
from itertools import permutations

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from numpy.linalg import norm
from scipy.optimize import minimize

from toytransformer.adapters import LoRA, closed_form
from toytransformer.compositions.spec import Merge
from toytransformer.merging import (
    ALIASES,
    RULES,
    MergeContext,
    Routed,
    RuleError,
    StaticMerge,
    check,
    merge,
    merge_rule,
    resolve,
)
from toytransformer.merging.routing import LOST, by_grams, prototype
from toytransformer.merging.static import keep_largest

ENTITIES, FEATURES, RANK, PROMPTS = 6, 9, 2, 5

# Algebraic tolerance, relative to the largest entry: room for a gauge of condition 8 and a few SVDs.
EPS = np.finfo(float).eps
ATOL = 2**16 * EPS

seeds = st.integers(0, 2**32 - 1)
counts = st.integers(1, 3)
DATA_FREE = [name for name, rule in RULES.items() if not rule.needs_data]
STATIC = [name for name in DATA_FREE if not RULES[name].routed]
ARROWS = [name for name, rule in RULES.items() if rule.routed]
INVARIANT = [name for name, rule in RULES.items() if rule.gauge_invariant]


def draw(seed, n=2, rank=RANK):
    rng = np.random.default_rng(seed)
    return [LoRA(rng.normal(size=(ENTITIES, rank)), rng.normal(size=(FEATURES, rank))) for _ in range(n)]


def context(seed=0, logit_scale=2.0, examples=4):
    rng = np.random.default_rng([seed, 1])
    features, targets = rng.normal(size=(examples, FEATURES)), rng.normal(size=(examples, ENTITIES))
    return MergeContext(7, logit_scale, features, targets)


def prompts(seed=0):
    return np.random.default_rng([seed, 2]).normal(size=(PROMPTS, FEATURES))


def weights_of(rule, n, seed=0):
    """Random weights of both signs, or None where the rule sets its own."""
    return tuple(np.random.default_rng([seed, 3]).normal(size=n)) if RULES[rule].weighted else None


def invertible(rng, rank=RANK):
    left, right = (np.linalg.qr(rng.normal(size=(rank, rank)))[0] for _ in range(2))
    return (left * np.exp(rng.uniform(-1, 1, rank))) @ right


def close(a, b, factor=1.0):
    a, b = np.asarray(a), np.asarray(b)
    scale = max(np.max(np.abs(a), initial=0), np.max(np.abs(b), initial=0), 1e-300)
    assert a.shape == b.shape
    assert np.max(np.abs(a - b), initial=0) <= factor * ATOL * scale


def well_posed(merged):
    """Leave out draws where (nearly) equal singular values leave the result undetermined."""
    gaps = [merged.spectral_gap, merged.details.get("spectrum_gap"), merged.details.get("cut_gap")]
    assume(all(gap is None or gap > 1e-3 for gap in gaps))


# ---------------------------------------------------------------- independent formulas


def dense_sum(adapters, w):
    return np.einsum("n,nef->ef", w, np.stack([a.write @ a.read.T for a in adapters]))


def peft_trim(x, density):
    """magnitude_based_pruning of PEFT 0.21, for arrays without ties."""
    mask = np.zeros(x.size)
    mask[np.argsort(-np.abs(x).ravel())[: int(density * x.size)]] = 1
    return x * mask.reshape(x.shape)


def peft_elect(parts, w, method):
    """calculate_majority_sign_mask and disjoint_merge of PEFT 0.21."""
    x = np.stack(parts)
    magnitude = x.sum(0) if method == "total" else np.sign(x).sum(0)
    mask = np.sign(x) == np.where(magnitude >= 0, 1, -1)
    mixed = (x * np.reshape(w, (-1,) + (1,) * (x.ndim - 1)) * mask).sum(0)
    return mixed / np.maximum(mask.sum(0), 1)


def peft_ties(arrays, w, density, sign="total"):
    return peft_elect([peft_trim(x, density) for x in arrays], w, sign)


def peft_sides(w):
    """The weights PEFT gives lora_B (write) and lora_A (read)."""
    root = np.sqrt(np.abs(w))
    return root, np.where(np.asarray(w) >= 0, 1, -1) * root


def dense_ties_factors(adapters, w, density, sign="total"):
    b, a = peft_sides(w)
    return (
        peft_ties([x.write for x in adapters], b, density, sign)
        @ peft_ties([x.read for x in adapters], a, density, sign).T
    )


def dense_linear(adapters, b, a):
    return sum(c * x.write for c, x in zip(b, adapters, strict=True)) @ (
        sum(c * x.read for c, x in zip(a, adapters, strict=True)).T
    )


def dense_truncated(adapters, w, rank):
    left, values, right = np.linalg.svd(dense_sum(adapters, w))
    return (left[:, :rank] * values[:rank]) @ right[:rank]


def dense_dare(adapters, density, seed):
    rng = np.random.default_rng(seed)
    return [x.delta() * (rng.random((ENTITIES, FEATURES)) < density) / density for x in adapters]


def dense_knots(adapters, w, density):
    """KnOTS as its authors' code: TIES on diag(s) V_i^T, singular vectors of the stacked dense matrices."""
    left, values, right = np.linalg.svd(np.hstack([x.delta() for x in adapters]), full_matrices=False)
    kept = values > 1e-10 * values[0]
    coordinates = values[kept, None] * right[kept]
    return left[:, kept] @ peft_ties(np.split(coordinates, len(adapters), axis=1), w, density)


def dense_tsv(adapters, w, rank):
    """TSV-Merge: triples of the dense matrices, whitened by the roots of their Gram matrices."""
    parts = [np.linalg.svd(x.delta(), full_matrices=False) for x in adapters]
    u, v = (
        np.hstack([left[:, :rank] for left, _, _ in parts]),
        np.vstack([right[:rank] for _, _, right in parts]).T,
    )
    scales = np.concatenate([c * values[:rank] for c, (_, values, _) in zip(w, parts, strict=True)])

    def whitened(x):
        values, turn = np.linalg.eigh(x.T @ x)
        kept = values > 1e-10 * values[-1]
        return x @ (turn[:, kept] / np.sqrt(values[kept])) @ turn[:, kept].T

    return whitened(u) * scales @ whitened(v).T


def dense_lego(adapters, k):
    """LoRA-LEGO, Ward's clusters by definition: join the pair whose sum of squares grows least, down to k."""
    units = [np.concatenate([b, a]) for x in adapters for b, a in zip(x.write.T, x.read.T, strict=True)]
    groups = [[unit] for unit in units]

    def growth(one, other):
        apart = np.mean(one, axis=0) - np.mean(other, axis=0)
        return len(one) * len(other) / (len(one) + len(other)) * apart @ apart

    while len(groups) > k:
        pairs = [(i, j) for i in range(len(groups)) for j in range(i)]
        i, j = min(pairs, key=lambda pair: growth(groups[pair[0]], groups[pair[1]]))
        groups[j] += groups.pop(i)
    total = 0
    for group in groups:
        centre = np.mean(group, axis=0)
        centre = centre * np.mean([np.linalg.norm(unit) for unit in group]) / np.linalg.norm(centre)
        b, a = np.split(centre, [len(adapters[0].write)])
        total = total + np.outer(b, a)
    return np.sqrt(max(x.rank for x in adapters) / len(groups)) * total


def dense_lori_s(adapters, w, density):
    return sum(c * peft_trim(x.write, density) @ x.read.T for c, x in zip(w, adapters, strict=True))


def peft_factors(adapters, w, prune, combine, scales=None):
    """PEFT's _generalized_task_arithmetic_weighted_adapter: lora_B unscaled, w_i s_i in roots."""
    scales = np.ones(len(adapters)) if scales is None else np.asarray(scales)
    b, a = peft_sides(np.asarray(w) * scales)
    read = [prune(x.read.T).T for x in adapters]  # PEFT takes every lora_A first
    write = [prune(x.write / s) for x, s in zip(adapters, scales, strict=True)]
    return combine(write, b) @ combine(read, a).T


def total(parts, w):
    return np.einsum("n,nij->ij", w, np.stack(parts))


def dropping(density, seed):
    rng = np.random.default_rng(seed)
    return lambda x: x * (rng.random(x.shape) < density) / density


def electing(parts, w):
    return peft_elect(parts, w, "total")


#: PEFT's rules on factors: our name, PEFT's, the options, what is done with a factor, and with all of them.
PEFT_FACTORS = [
    ("linear-peft", "linear", {}, lambda: lambda x: x, total),
    ("ties-factors", "ties", {"density": 0.6}, lambda: lambda x: peft_trim(x, 0.6), electing),
    ("dare-factors", "dare_linear", {"density": 0.4, "seed": 3}, lambda: dropping(0.4, 3), total),
    ("dare-ties-factors", "dare_ties", {"density": 0.4, "seed": 3}, lambda: dropping(0.4, 3), electing),
    (
        "magnitude-prune-factors",
        "magnitude_prune",
        {"density": 0.3},
        lambda: lambda x: peft_trim(x, 0.3),
        total,
    ),
]


REFERENCE = [
    *(
        (rule, options, lambda a, w, prune=prune, combine=combine: peft_factors(a, w, prune(), combine))
        for rule, _, options, prune, combine in PEFT_FACTORS[2:]
    ),
    ("sum", {}, dense_sum),
    ("linear", {}, lambda a, w: dense_linear(a, w, w)),
    ("linear-peft", {}, lambda a, w: dense_linear(a, *peft_sides(w))),
    ("sum-truncated", {"rank": 3}, lambda a, w: dense_truncated(a, w, 3)),
    ("sum-truncated", {}, lambda a, w: dense_truncated(a, w, RANK)),
    ("ties", {"density": 0.3}, lambda a, w: peft_ties([x.delta() for x in a], w, 0.3)),
    (
        "ties",
        {"density": 0.7, "sign": "frequency"},
        lambda a, w: peft_ties([x.delta() for x in a], w, 0.7, "frequency"),
    ),
    ("ties-factors", {"density": 0.6}, lambda a, w: dense_ties_factors(a, w, 0.6)),
    (
        "dare",
        {"density": 0.4, "seed": 3},
        lambda a, w: np.einsum("n,nef->ef", w, np.stack(dense_dare(a, 0.4, 3))),
    ),
    ("dare-ties", {"density": 0.4, "seed": 3}, lambda a, w: peft_elect(dense_dare(a, 0.4, 3), w, "total")),
    (
        "magnitude-prune",
        {"density": 0.25},
        lambda a, w: np.einsum("n,nef->ef", w, np.stack([peft_trim(x.delta(), 0.25) for x in a])),
    ),
    ("knots", {"density": 0.4}, lambda a, w: dense_knots(a, w, 0.4)),
    ("knots", {"inner": "sum"}, dense_sum),
    ("tsv", {"rank": 1}, lambda a, w: dense_tsv(a, w, 1)),
    ("tsv", {}, lambda a, w: dense_tsv(a, w, max(1, RANK // len(a)))),
    ("lora-lego", {}, lambda a, w: dense_lego(a, RANK)),
    ("lora-lego", {"clusters": 1}, lambda a, w: dense_lego(a, 1)),
    ("lora-lego", {"clusters": 999}, lambda a, w: dense_sum(a, np.full(len(a), len(a) ** -0.5))),
    ("lori-d", {}, dense_sum),
    ("lori-d", {"combine": "linear"}, lambda a, w: dense_linear(a, w, w)),
    ("lori-s", {"density": 0.5}, lambda a, w: dense_lori_s(a, w, 0.5)),
]


@pytest.mark.parametrize(
    "rule, options, dense", REFERENCE, ids=lambda value: getattr(value, "__name__", str(value))[:40]
)
@given(seed=seeds, n=counts)
def test_static_rules_equal_dense_formulas(rule, options, dense, seed, n):
    adapters, w = draw(seed, n), weights_of(rule, n, seed)
    merged = merge(adapters, Merge(rule, w, options))
    well_posed(merged)
    wanted = dense(adapters, w)
    close(merged.delta(), wanted)
    close(merged.shift(prompts(seed)), prompts(seed) @ wanted.T)


def test_every_static_rule_has_an_independent_formula():
    assert {rule for rule, *_ in REFERENCE} | {"mean"} == set(STATIC)


@pytest.mark.parametrize(
    "rule, name, options, prune, combine",
    PEFT_FACTORS,
    ids=lambda value: getattr(value, "__name__", str(value))[:25],
)
@given(seed=seeds, n=counts)
def test_rules_on_factors_are_pefts_at_unequal_scales(rule, name, options, prune, combine, seed, n):
    """PEFT multiplies the weights by s and takes lora_B without it; the write factor here holds s."""
    adapters, w = draw(seed, n), weights_of(rule, n, seed)
    scales = tuple(np.random.default_rng(seed).uniform(0.2, 8, n))
    merged = merge(adapters, Merge(rule, w, options), MergeContext(scales=scales))
    wanted = peft_factors(adapters, w, prune(), combine, scales)
    close(merged.delta(), wanted, 10)
    plain = merge(adapters, Merge(rule, w, options)).delta()
    if n > 1:  # scales that happen to lie close together differ by little, and by far more than rounding
        assert np.linalg.norm(plain - wanted) > 1e-9 * np.linalg.norm(wanted)
    equal = merge(adapters, Merge(rule, w, options), MergeContext(scales=(scales[0],) * n)).delta()
    close(equal, plain, 10)


def test_names_of_peft_and_mergekit_are_understood():
    for rule, name, *_ in PEFT_FACTORS[2:]:
        assert resolve(name).name == rule
    wanted = {"cat": "sum", "task_arithmetic": "sum", "svd": "sum-truncated", "ties_svd": "ties"}
    wanted |= {
        "dare_linear_svd": "dare",
        "dare_ties_svd": "dare-ties",
        "magnitude_prune_svd": "magnitude-prune",
    }
    assert {name: resolve(name).name for name in wanted} == wanted
    assert not ALIASES.keys() & RULES.keys() and set(ALIASES.values()) <= set(RULES)
    (lora,) = draw(0, 1)
    assert np.array_equal(
        merge([lora], Merge("cat", (2.0,))).delta(), merge([lora], Merge("sum", (2.0,))).delta()
    )


@given(seed=seeds, n=counts)
def test_default_weights(seed, n):
    adapters, one, part = draw(seed, n), np.ones(n), np.full(n, 1 / n)
    for rule, wanted in [
        ("sum", dense_sum(adapters, one)),
        ("mean", dense_sum(adapters, part)),
        ("linear", dense_linear(adapters, part, part)),
        ("linear-peft", dense_linear(adapters, *peft_sides(part))),
        ("ties", peft_ties([x.delta() for x in adapters], one, 0.2)),
        ("lori-d", dense_sum(adapters, one)),
    ]:
        close(merge(adapters, Merge(rule)).delta(), wanted)


@pytest.mark.parametrize(
    "rule, ranks", [("sum", 6), ("mean", 6), ("linear", 2), ("sum-truncated", 2), ("knots", 6)]
)
def test_low_rank_results_stay_factored(rule, ranks):
    update = merge(draw(0, 3), Merge(rule)).update
    assert isinstance(update, LoRA) and update.rank == ranks


# ---------------------------------------------------------------- gauges


@pytest.mark.parametrize("rule", INVARIANT)
@given(seed=seeds)
def test_product_wise_rules_do_not_see_the_gauge(rule, seed):
    rng = np.random.default_rng([seed, 4])
    adapters, spec = draw(seed), Merge(rule, weights_of(rule, 2, seed))
    regauged = [lora.regauge(invertible(rng)) for lora in adapters]
    merged = merge(adapters, spec, context(seed))
    well_posed(merged)
    close(merged.shift(prompts(seed)), merge(regauged, spec, context(seed)).shift(prompts(seed)), factor=100)


@pytest.mark.parametrize(
    "rule, options",
    [(name, {"combine": "linear"} if name == "lori-d" else {}) for name in RULES if name not in INVARIANT],
)
def test_factor_wise_rules_move_with_the_gauge(rule, options):
    adapters, spec = draw(1), Merge(rule, options=options)
    regauged = [
        adapters[0],
        adapters[1].regauge(-np.eye(RANK) if rule != "lori-s" else np.array([[1, 2], [0, 1]])),
    ]
    before = merge(adapters, spec, context()).shift(prompts())
    after = merge(regauged, spec, context()).shift(prompts())
    assert norm(after - before) > 0.1 * norm(before)


def test_a_sign_flip_turns_the_mixture_of_eq_27():
    """With the overlaps c1, c2 of the full limit: (c1 + c2)/4 twice becomes (c1 - c2)/4 and (c2 - c1)/4."""
    c1, c2 = 0.4122323, 0.5730357
    one, two = (LoRA(column[:, None], column[:, None]) for column in np.eye(2))
    xi = np.array([[c1, c2]])
    close(merge([one, two], Merge("linear")).shift(xi), [[(c1 + c2) / 4] * 2])
    flipped = LoRA(-two.write, -two.read)
    close(merge([one, flipped], Merge("linear")).shift(xi), [[(c1 - c2) / 4, (c2 - c1) / 4]])
    close(merge([one, flipped], Merge("sum")).shift(xi), xi)


@pytest.mark.parametrize("rank", [RANK, ENTITIES + 1, FEATURES + 1])
@given(seed=seeds)
def test_factored_svd_is_the_dense_one(rank, seed):
    (lora,) = draw(seed, 1, rank)
    left, values, right = lora.svd()
    close((left * values) @ right.T, lora.delta())
    close(values, np.linalg.svd(lora.delta(), compute_uv=False)[: len(values)])


# ---------------------------------------------------------------- weights


@pytest.mark.parametrize(
    "rule, multiple, options",
    [
        ("sum", 1, {}),
        ("lori-d", 1, {}),
        ("linear", 1, {}),
        ("linear-peft", 2, {}),
        ("ties", 0.5, {"density": 1}),
        ("ties-factors", 0.5, {"density": 1}),
        ("knots", 0.5, {"density": 1}),
        ("knots", 1, {"inner": "sum"}),
        ("magnitude-prune", 1, {"density": 1}),
        ("dare", 1, {"density": 1}),
        ("dare-ties", 0.5, {"density": 1}),
    ],
)
@given(seed=seeds)
def test_an_adapter_merged_with_itself_at_half_and_half(rule, multiple, options, seed):
    (lora,) = draw(seed, 1)
    merged = merge([lora, lora], Merge(rule, (0.5, 0.5), options))
    well_posed(merged)
    close(merged.delta(), multiple * lora.delta())


@pytest.mark.parametrize("rule", ["mean", *ARROWS])
@given(seed=seeds)
def test_merging_copies_gives_the_adapter_where_weights_sum_to_one(rule, seed):
    (lora,) = draw(seed, 1)
    close(merge([lora, lora], Merge(rule), context()).shift(prompts(seed)), lora.shift(prompts(seed)))


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("rule", [name for name in DATA_FREE if not RULES[name].seeded])
@given(seed=seeds)
def test_renaming_the_answers_renames_the_outputs(rule, seed):
    adapters, order = draw(seed), np.random.default_rng([seed, 5]).permutation(ENTITIES)
    spec = Merge(rule, weights_of(rule, 2, seed))
    renamed = [LoRA(lora.write[order], lora.read) for lora in adapters]
    merged = merge(adapters, spec, context())
    well_posed(merged)
    close(merge(renamed, spec, context()).shift(prompts(seed)), merged.shift(prompts(seed))[:, order])


def two_hops(seed, order):
    """theory.md, section 5: adapter 1 writes entities 0, 1, 2 in some order, adapter 2 the others."""
    one, two = draw(seed)
    first = np.vstack([one.write[:3][list(order)], np.zeros((3, RANK))])
    return [LoRA(first, one.read), LoRA(np.vstack([np.zeros((3, RANK)), two.write[3:]]), two.read)]


def relabelled(rule, seed):
    """The merges under each relabelling of the first hop's answers; the examples stay as they are."""
    spec = Merge(rule, weights_of(rule, 2, seed))
    return [merge(two_hops(seed, order), spec, context(seed)) for order in permutations(range(3))]


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.label_blind])
@given(seed=seeds)
def test_label_blind_rules_answer_the_second_hop_alike_under_relabelling(rule, seed):
    first, *others = relabelled(rule, seed)
    well_posed(first)
    for other in others:
        close(other.shift(prompts(seed))[:, 3:], first.shift(prompts(seed))[:, 3:])


@pytest.mark.parametrize("rule", ["cat-fitted", "lorahub"])
def test_fitted_rules_are_not_label_blind(rule):
    rows = [merged.shift(prompts())[:, 3:] for merged in relabelled(rule, 0)]
    assert max(norm(other - rows[0]) for other in rows) > 1e-3 * norm(rows[0])


@pytest.mark.parametrize(
    "rule", [name for name, rule in RULES.items() if not rule.control and rule.fitted_by != "train"]
)
@given(seed=seeds)
def test_zero_rows_stay_zero(rule, seed):
    """No merge of adapters can give an answer that none of them was trained on (no_ripple_any_merge)."""
    adapters = [LoRA(lora.write * (np.arange(ENTITIES) > 1)[:, None], lora.read) for lora in draw(seed)]
    shift = merge(adapters, Merge(rule), context()).shift(prompts(seed))
    assert np.max(np.abs(shift[:, :2])) <= ATOL * np.max(np.abs(shift))


def test_a_tie_at_the_threshold_is_not_broken_by_position():
    """A closed-form adapter adds +1 to the new answer and -1 to the old one: neither is the larger."""
    x = np.array([[1.0, 0.5], [-1.0, -0.5], [0.0, 0.0]])
    for order in permutations(range(3)):
        close(keep_largest(x[list(order)], 0.2), np.where(np.abs(x) == 1, x, 0)[list(order)])
    nudged = x * (1 + np.array([[0.0], [1e-15], [0.0]]))
    assert np.count_nonzero(keep_largest(nudged, 0.2)) == 2


def test_rounding_noise_has_no_vote():
    signal, noise = np.array([[1.0], [0.0]]), np.array([[1e-17], [1.0]])
    adapters = [LoRA(signal, np.eye(1)), LoRA(noise, np.eye(1))]
    for rule in ("ties", "ties-factors"):
        delta = merge(adapters, Merge(rule, (1.0, 1.0), {"density": 1})).delta()
        close(delta[:1], [[1.0]])


@pytest.mark.parametrize("rule", ["ties", "knots"])
@given(seed=seeds)
def test_an_exact_draw_is_not_decided_by_rounding(rule, seed):
    """Delta and -Delta elect + everywhere (PEFT), whatever the gauge and the signs an SVD returns."""
    rng, (lora,) = np.random.default_rng([seed, 9]), draw(seed, 1)
    opposite = LoRA(-lora.write, lora.read)
    spec = Merge(rule, (1.0, 1.0), {"density": 1})
    first = merge([lora, opposite], spec)
    well_posed(first)
    if rule == "ties":
        close(first.delta(), np.abs(lora.delta()))
    for _ in range(3):
        pair = [lora.regauge(invertible(rng)), opposite.regauge(invertible(rng))]
        close(merge(pair, spec).delta(), first.delta(), factor=100)


@given(seed=seeds)
def test_trimming_keeps_the_share_asked_for(seed):
    x = np.random.default_rng(seed).normal(size=(4, 5))
    for density in (0.04, 0.1, 0.55, 1):
        kept = keep_largest(x, density)
        assert np.count_nonzero(kept) == int(density * x.size)
        close(kept, peft_trim(x, density) if density < 1 else x)


# ---------------------------------------------------------------- array libraries


@pytest.mark.parametrize("rule", [*DATA_FREE, "cat-fitted", "adaptive-random", "new-adapter", "lorahub"])
@pytest.mark.parametrize("seed", [0, 1])
def test_jax_arrays_give_the_same_numbers(rule, seed):
    adapters, spec = draw(seed), Merge(rule, weights_of(rule, 2, seed))
    on_jax = [LoRA(jnp.asarray(lora.write), jnp.asarray(lora.read)) for lora in adapters]
    shift = merge(on_jax, spec, context()).shift(jnp.asarray(prompts()))
    assert isinstance(shift, jnp.ndarray)
    close(shift, merge(adapters, spec, context()).shift(prompts()), factor=100)


def test_single_precision_stays_single_precision():
    adapters = [LoRA(lora.write.astype(np.float32), lora.read.astype(np.float32)) for lora in draw(0)]
    for rule in DATA_FREE:
        assert (
            merge(adapters, Merge(rule), context()).shift(prompts().astype(np.float32)).dtype == np.float32
        ), rule


# ---------------------------------------------------------------- random masks


@pytest.mark.parametrize("rule", [name for name in DATA_FREE if RULES[name].seeded])
def test_masks_follow_the_seed_and_nothing_else(rule):
    adapters = draw(0)

    def delta(rng_seed, **options):
        return merge(adapters, Merge(rule, options=options), MergeContext(rng_seed)).delta()

    assert np.array_equal(delta(1), delta(1))
    assert np.array_equal(delta(1), delta(2, seed=1))
    assert not np.array_equal(delta(1), delta(2))
    assert merge(adapters, Merge(rule), MergeContext(5)).details["seed"] == 5


def test_dare_is_the_sum_on_average():
    """An entry w_i D_i mask/density has variance w_i^2 D_i^2 (1 - density)/density; five standard errors."""
    adapters, w, density, repeats = draw(0), np.array([1.0, -0.5]), 0.3, 400
    specs = [Merge("dare", tuple(w), {"density": density, "seed": seed}) for seed in range(repeats)]
    mean = np.mean([merge(adapters, spec).delta() for spec in specs], axis=0)
    squares = sum((c * lora.delta()) ** 2 for c, lora in zip(w, adapters, strict=True))
    error = np.sqrt(squares * (1 - density) / density / repeats)
    assert np.all(np.abs(mean - dense_sum(adapters, w)) <= 5 * error)


# ---------------------------------------------------------------- Arrow


def axes(*strengths):
    """Rank-one adapters whose prototypes are the first coordinate axes."""
    return [LoRA(s * np.eye(3)[:, [i]], np.eye(3)[:, [i]]) for i, s in enumerate(strengths)]


@pytest.mark.parametrize("rank", [1, RANK, 4])
@given(seed=seeds)
def test_the_prototype_is_the_top_right_singular_vector(rank, seed):
    (lora,) = draw(seed, 1, rank)
    p, gap = prototype(lora)
    _, values, right = np.linalg.svd(lora.delta())
    assume(gap > 1e-3)
    assert abs(gap - (1.0 if rank == 1 else (values[0] - values[1]) / values[0])) <= ATOL
    close(p * np.sign(p @ right[0]), right[0], factor=1 / gap)


@given(
    seed=seeds,
    rank=st.integers(1, 6),
    spread=st.floats(-12, 0),
    size=st.floats(-160, 140),
    skew=st.floats(0, 6),
)
@example(seed=0, rank=2, spread=-12.0, size=0.0, skew=0.0)
@example(seed=0, rank=3, spread=0.0, size=0.0, skew=6.0)
@example(seed=0, rank=3, spread=-1.0, size=-160.0, skew=0.0)
def test_the_quick_route_to_a_prototype_is_as_exact_as_the_other(seed, rank, spread, size, skew):
    """On singular values over 10^-spread, of size 10^size, in factors skewed by 10^skew."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((count, rank)))[0] for count in (40, 60))
    values = np.logspace(0, spread, rank)
    turn = np.linalg.qr(rng.standard_normal((rank, rank)))[0]
    transform = turn * np.logspace(0, skew, rank)
    write, read = left * values @ transform, right @ np.linalg.inv(transform).T
    lora = LoRA(write * 10.0**size, read)
    found = by_grams(lora)
    if found is None:  # its factors cancel, the two largest singular values tie, or the second is lost
        return
    p, gap = found
    _, exact, vectors = lora.svd()
    second = exact[1] if rank > 1 else 0.0
    loss = np.linalg.norm(write, 2) * np.linalg.norm(read, 2) / values[0]
    assert loss <= 2.0**LOST * (1 + 1e-6)
    # |W| |R| / (s_1 - s_2) units of rounding through QRs, 2^LOST as many by Grams, of a hundred products
    slack = 100 * EPS * loss * (1 + 2.0**LOST) / (1 - second / exact[0])
    assert np.linalg.norm(p * np.sign(p @ vectors[:, 0]) - vectors[:, 0]) <= slack
    assert abs(np.linalg.norm(p) - 1) <= 100 * EPS
    # s_2^2 is known to eps s_1^2 |W|^2 |R|^2, and not used below sqrt(eps) s_1^2
    assert abs(gap - (exact[0] - second) / exact[0]) <= 100 * EPS * loss**2 * EPS**-0.25


def test_factors_of_usual_adapters_take_the_quick_route(monkeypatch):
    """Random ones, at the size of a language model's layer and in both libraries; and its precision."""
    rng = np.random.default_rng(0)
    write, read = rng.standard_normal((256, 16)), rng.standard_normal((512, 16))
    exact = LoRA(write, read).svd()[2][:, 0]
    monkeypatch.setattr(LoRA, "svd", None)
    for lora in (LoRA(write, read), LoRA(torch.from_numpy(write), torch.from_numpy(read))):
        p, _ = prototype(lora)
        assert abs(abs(float(np.asarray(p) @ exact)) - 1) <= 1e3 * EPS


@pytest.mark.parametrize("options", [{}, {"top_k": 1}, {"top_k": 2}, {"temperature": 0.3}])
@pytest.mark.parametrize("rule", ARROWS)
@given(seed=seeds)
def test_arrow_equals_the_formula_prompt_by_prompt(rule, options, seed):
    adapters, scale = draw(seed, 3), 2.0
    merged = merge(adapters, Merge(rule, options=options), context(logit_scale=scale))
    well_posed(merged)
    for phi, routing, shift in zip(
        prompts(seed), merged.routing(prompts(seed)), merged.shift(prompts(seed)), strict=True
    ):
        top = [np.linalg.svd(lora.delta())[2][0] for lora in adapters]
        logits = np.abs(np.array(top) @ phi) * scale / options.get("temperature", 1)
        logits[np.argsort(-logits)[options.get("top_k", 3) :]] = -np.inf
        w = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        close(routing, w, factor=1e4)
        update = dense_linear(adapters, w, w) if rule == "arrow-factors" else dense_sum(adapters, w)
        close(shift, update @ phi, factor=1e4)


@pytest.mark.parametrize("rule", ARROWS)
@given(seed=seeds)
@example(seed=0)
def test_arrow_does_not_see_the_sign_of_a_prototype(rule, seed):
    """p and -p are one singular vector, so phi and -phi are routed alike: fails without the abs."""
    merged = merge(draw(seed), Merge(rule), context())
    close(merged.routing(prompts(seed)), merged.routing(-prompts(seed)))
    phi = np.array([[0.9, 0.1, 0.0], [-0.9, 0.1, 0.0], [0.9, -0.1, 0.0], [-0.9, -0.1, 0.0]])
    close(merge(axes(1, 1), Merge(rule)).routing(phi), [[1, 0]] * 4)


@pytest.mark.parametrize("rule", ARROWS)
def test_arrow_saturates_with_the_width_unless_the_temperature_grows_too(rule):
    phi, adapters = np.array([[0.6, 0.5, 0.1]]), axes(1, 2, 3)
    fixed = [
        merge(adapters, Merge(rule), MergeContext(logit_scale=math.sqrt(m))).routing(phi)[0, 0]
        for m in (1, 1e2, 1e4, 1e6, math.inf)
    ]
    assert fixed == sorted(fixed) and fixed[0] < 0.5 and fixed[-2] > 1 - 1e-12 and fixed[-1] == 1
    grown = [
        merge(
            adapters, Merge(rule, options={"temperature_scaling": "sqrt-width"}), MergeContext(logit_scale=s)
        )
        for s in (1.0, 1e3, math.inf)
    ]
    soft = np.exp(phi) / np.exp(phi).sum()
    for merged in grown:
        close(merged.routing(phi), soft)


@pytest.mark.parametrize("rule", ARROWS)
@given(seed=seeds)
@example(seed=0)
def test_mean_features_as_prototypes(rule, seed):
    """Against a softmax written out; the lengths of the means do not matter, nor do singular vectors."""
    adapters, phi = draw(seed), prompts(seed)
    means = np.random.default_rng(seed).normal(size=(len(adapters), phi.shape[1]))
    spec = Merge(rule, options={"prototypes": "mean-features", "temperature": 0.7})
    merged = merge(adapters, spec, MergeContext(logit_scale=2.0, own_means=means))
    rows = []
    for row in phi:
        logits = [2 / 0.7 * abs(row @ mean) / math.sqrt(mean @ mean) for mean in means]
        weights = [math.exp(logit - max(logits)) for logit in logits]
        rows.append([weight / sum(weights) for weight in weights])
    close(merged.routing(phi), rows)
    longer = MergeContext(logit_scale=2.0, own_means=3 * means)
    close(merge(adapters[::-1], spec, longer).routing(phi), rows)
    assert merged.spectral_gap is None and "spectral_gaps" not in merged.details


@pytest.mark.parametrize(
    "means, message",
    [
        (None, "the prompts that each adapter was trained on, and none are known"),
        (np.ones((2, 3)), r"shape \(2, 3\); it has to be \(3, 3\)"),
        (np.diag([1.0, 1.0, 0.0]), "zero or not finite"),
        (np.diag([1.0, 1.0, np.nan]), "zero or not finite"),
    ],
)
def test_mean_features_that_are_none(means, message):
    spec = Merge("arrow-products", options={"prototypes": "mean-features"})
    with pytest.raises(RuleError, match=message):
        merge(axes(1, 2, 3), spec, MergeContext(own_means=means))


@pytest.mark.parametrize("rule", ARROWS)
def test_exact_ties_share_the_choice(rule):
    phi = np.array([[0.5, -0.5 * (1 + 1e-15), 0.1], [0.0, 0.0, 0.0]])
    hard = merge(axes(1, 2, 3), Merge(rule)).routing(phi)
    close(hard, [[0.5, 0.5, 0], [1 / 3] * 3])
    top = merge(axes(1, 2, 3), Merge(rule, options={"top_k": 1}), MergeContext(logit_scale=1.0)).routing(phi)
    close(top, hard)


@pytest.mark.parametrize("rule", ARROWS)
def test_top_k(rule):
    spec = [Merge(rule, options={"top_k": k}) for k in (None, 3, 4)]
    close(*(merge(draw(0, 3), s, context()).routing(prompts()) for s in spec[:2]))
    with pytest.raises(RuleError, match=r"top_k is 4 but there are 3 adapters"):
        merge(draw(0, 3), spec[2], context())


@pytest.mark.parametrize("rule", ARROWS)
def test_the_spectral_gap_is_reported(rule):
    one = merge(axes(1, 2), Merge(rule))
    assert one.spectral_gap == 1 and "warning" not in one.details
    tied = merge(
        [LoRA(np.eye(3)[:, :2], np.eye(3)[:, :2]), LoRA(np.eye(3)[:, :2], np.eye(3)[:, 1:])], Merge(rule)
    )
    assert tied.spectral_gap < 1e-12 and "arbitrary" in tied.details["warning"]
    assert merge(draw(0), Merge("sum")).spectral_gap is None


@pytest.mark.parametrize("rule", ARROWS)
def test_a_zero_adapter_has_no_prototype(rule):
    lora = draw(0)[0]
    for zero in (
        LoRA(0 * lora.write, lora.read),
        LoRA(np.ones((ENTITIES, 2)), lora.read[:, [0, 0]] * np.array([1, -1])),
    ):
        with pytest.raises(RuleError, match="no Arrow prototype"):
            merge([lora, zero], Merge(rule))
    close(merge([lora, LoRA(0 * lora.write, lora.read)], Merge("sum")).delta(), lora.delta())


# ---------------------------------------------------------------- truncation, KnOTS


@given(seed=seeds)
def test_truncation_loses_the_tail_of_the_spectrum(seed):
    merged = merge(draw(seed), Merge("sum-truncated", options={"rank": 3}))
    total = dense_sum(draw(seed), np.ones(2))
    values = np.linalg.svd(total, compute_uv=False)
    close(norm(merged.delta() - total, 2), values[3])
    assert abs(merged.details["cut_gap"] - (values[2] - values[3]) / values[0]) <= ATOL


def test_a_cut_between_equal_singular_values_is_reported():
    cut = merge(axes(1, 1), Merge("sum-truncated")).details
    assert cut["cut_gap"] == 0 and "singular values 1 and 2 of the sum are equal" in cut["warning"]
    whole = merge(axes(1, 1), Merge("sum-truncated", options={"rank": 2})).details
    assert whole["cut_gap"] == 1 and "warning" not in whole
    stack = merge(axes(1, 1), Merge("knots")).details
    assert stack["spectrum_gap"] <= ATOL and "basis of TIES is arbitrary" in stack["warning"]
    assert "warning" not in merge(axes(1, 1), Merge("knots", options={"inner": "sum"})).details


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.spectral])
def test_rules_that_read_singular_vectors_say_so_where_these_tie_and_only_there(rule):
    """Two equal adapters on other inputs and outputs: any rotation of the two is a singular vector too."""
    write, read = np.eye(ENTITIES)[:, :2], np.eye(FEATURES)
    tied = [LoRA(write, read[:, :2]), LoRA(np.eye(ENTITIES)[:, 2:4], read[:, 2:4])]
    assert (
        "is arbitrary"
        in merge(tied, Merge(rule, options=ONE_LEFT.get(rule, {})), context()).details["warning"]
    )
    assert "warning" not in merge(draw(0), Merge(rule), context()).details


#: Options with which a rule has to choose among the singular vectors of rank-two adapters.
ONE_LEFT = {"sum-truncated": {"rank": 1}}


# ---------------------------------------------------------------- fitted rules


def losses(adapters, ctx, w):
    shifts = np.stack([lora.shift(ctx.example_features) for lora in adapters])
    return np.sum((np.tensordot(w, shifts, 1) - ctx.example_targets) ** 2) / len(ctx.example_features)


def fitted(rule, adapters, ctx, **options):
    return merge(adapters, Merge(rule, options=options), ctx)


@given(seed=seeds, n=counts)
def test_free_weights_solve_the_normal_equations(seed, n):
    adapters, ctx = draw(seed, n), context(seed)
    w = np.array(fitted("cat-fitted", adapters, ctx, form="free").details["weights"])
    shifts = np.stack([lora.shift(ctx.example_features) for lora in adapters])
    slope = np.tensordot(shifts, np.tensordot(w, shifts, 1) - ctx.example_targets, 2)
    assert norm(slope) <= 100 * ATOL * norm(shifts) * norm(ctx.example_targets)


@given(seed=seeds)
def test_softmax_weights_are_the_infimum_of_training_the_logits(seed):
    adapters, ctx = draw(seed, 3), context(seed)
    merged = fitted("cat-fitted", adapters, ctx)
    w, loss = np.array(merged.details["weights"]), merged.details["loss"]
    assert np.all(w >= 0) and abs(w.sum() - 1) <= ATOL
    assert abs(loss - losses(adapters, ctx, w)) <= ATOL * loss

    def by_logits(logits):
        e = np.exp(logits - logits.max())
        return losses(adapters, ctx, e / e.sum())

    assert loss <= minimize(by_logits, np.zeros(3)).fun * (1 + 1e-9)
    # A convex loss: w is the minimum over the simplex if and only if no corner lies downhill.
    shifts = np.stack([lora.shift(ctx.example_features) for lora in adapters])
    slope = np.tensordot(shifts, np.tensordot(w, shifts, 1) - ctx.example_targets, 2)
    assert np.min(slope) - w @ slope >= -100 * ATOL * norm(slope)


@pytest.mark.parametrize("f", ["identity", "tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize("scale", [1e-200, 1e-9, 1e9])
@given(seed=seeds)
@example(seed=4)
def test_fits_do_not_depend_on_the_units_of_the_output(f, scale, seed):
    adapters, ctx = draw(seed, 3), context(seed)
    scaled = MergeContext(example_features=ctx.example_features, example_targets=scale * ctx.example_targets)
    larger = [LoRA(scale * lora.write, lora.read) for lora in adapters]
    one, two = (
        fitted("adaptive", *given, f=f).details["weights"] for given in ((adapters, ctx), (larger, scaled))
    )
    close(one, two)


@given(seed=seeds)
def test_the_fits_are_minima_and_smaller_ranges_lose_more(seed):
    adapters, ctx = draw(seed, 3), context(seed)
    allowed = {"identity": (-9, 9), "tanh": (-1, 1), "sigmoid": (0, 1), "softmax": (0, 1)}
    loss = {f: fitted("adaptive", adapters, ctx, f=f).details["loss"] for f in allowed}
    assert loss["identity"] <= loss["tanh"] * (1 + ATOL)
    assert loss["tanh"] <= loss["sigmoid"] * (1 + ATOL) <= loss["softmax"] * (1 + ATOL) ** 2
    rng = np.random.default_rng([seed, 7])
    for f, (low, high) in allowed.items():
        w = rng.uniform(low, high, size=(50, 3))
        w = w / w.sum(1, keepdims=True) if f == "softmax" else w
        assert all(loss[f] <= losses(adapters, ctx, row) for row in w), f


@pytest.mark.parametrize("rule, options", [("cat-fitted", {}), ("cat-fitted", {"form": "free"})])
@given(seed=seeds)
def test_weights_that_made_the_targets_are_found(rule, options, seed):
    adapters, ctx, w = draw(seed), context(seed), (0.3, 0.7)
    targets = merge(adapters, Merge("sum", w)).shift(ctx.example_features)
    merged = fitted(
        rule, adapters, MergeContext(example_features=ctx.example_features, example_targets=targets)
    )
    close(merged.details["weights"], w, factor=100)


def test_lorahub_finds_the_weights_within_its_bounds():
    adapters, ctx, w = draw(3), context(3), (0.9, 0.4)
    targets = merge(adapters, Merge("linear", w)).shift(ctx.example_features)
    ctx = MergeContext(example_features=ctx.example_features, example_targets=targets)
    found = fitted("lorahub", adapters, ctx, penalty=0).details
    assert np.allclose(found["weights"], w, atol=1e-3)
    assert fitted("lorahub", adapters, ctx, penalty=0).details == found
    bounded = fitted("lorahub", adapters, ctx, bound=0.5).details["weights"]
    assert max(map(abs, bounded)) <= 0.5


def test_lorahub_minimises_the_loss_plus_the_mean_absolute_weight():
    adapters, ctx = draw(4), context(4)
    penalty = 2.0

    def objective(w):
        residual = (
            merge(adapters, Merge("linear", tuple(w))).shift(ctx.example_features) - ctx.example_targets
        )
        return np.sum(residual**2) / len(residual) + penalty * np.mean(np.abs(w))

    found = fitted("lorahub", adapters, ctx, penalty=penalty).details["weights"]
    grid = np.linspace(-1.5, 1.5, 31)
    assert objective(found) <= min(objective((a, b)) for a in grid for b in grid)


@given(seed=seeds)
def test_the_random_control_knows_the_singular_values_only(seed):
    rng = np.random.default_rng([seed, 8])
    adapters, ctx = draw(seed), context(seed)
    turned = [
        LoRA(np.linalg.qr(rng.normal(size=(ENTITIES,) * 2))[0] @ lora.write, lora.read) for lora in adapters
    ]
    one, two = (fitted("adaptive-random", x, ctx, seed=1) for x in (adapters, turned))
    close(one.delta(), two.delta(), factor=100)
    (lora,) = draw(seed, 1)
    alone = fitted("adaptive-random", [lora], ctx)
    weight = abs(alone.details["weights"][0])
    close(
        np.linalg.svd(alone.delta(), compute_uv=False),
        weight * np.linalg.svd(lora.delta(), compute_uv=False),
        factor=100,
    )
    assert not np.allclose(one.delta(), fitted("adaptive-random", adapters, ctx, seed=2).delta())


@given(seed=seeds)
def test_the_new_adapter_is_the_closed_form_and_ignores_the_others(seed):
    ctx = context(seed)
    merged = fitted("new-adapter", draw(seed), ctx)
    close(merged.delta(), closed_form(ctx.example_features, ctx.example_targets).delta(), factor=1e4)
    assert np.array_equal(merged.delta(), fitted("new-adapter", draw(seed + 1), ctx).delta())
    assert merged.details["loss"] <= ATOL


@given(seed=seeds, n=counts)
def test_units_do_not_know_whose_they_are(seed, n):
    """Ranks in another order, adapters in another order, and ranks that are zero: the same clusters."""
    rng, adapters = np.random.default_rng([seed, 9]), draw(seed, n)
    merged = merge(adapters, Merge("lora-lego"))
    well_posed(merged)
    mixed = []
    for lora in adapters:
        order = rng.permutation(lora.rank)
        mixed.append(LoRA(lora.write[:, order], lora.read[:, order]))
    lora = mixed[0]
    nothing = np.zeros((len(lora.write), 1)), np.zeros((len(lora.read), 1))
    mixed[0] = LoRA(np.hstack([lora.write, nothing[0]]), np.hstack([lora.read, nothing[1]]))
    close(merge(mixed[::-1], Merge("lora-lego")).delta(), merged.delta(), factor=100)


@given(seed=seeds, n=counts)
def test_units_of_copies_are_one(seed, n):
    (lora,) = draw(seed, 1)
    merged = merge([lora] * n, Merge("lora-lego"))
    close(merged.delta(), lora.delta(), factor=100)
    assert merged.details["sizes"] == (n,) * RANK


def test_clusters_that_could_be_others_are_said_to_be_arbitrary():
    square = np.array([[1.0, 1.0, -1.0, -1.0], [1.0, -1.0, 1.0, -1.0]])
    merged = merge([LoRA(square, np.ones((3, 4)))], Merge("lora-lego", options={"clusters": 3}))
    assert "which units are one is arbitrary" in merged.details["warning"]
    zero = merge([LoRA(np.zeros((2, 4)), np.ones((3, 4)))], Merge("lora-lego"))
    assert zero.details["clusters"] == 4  # it reads, and writes nothing
    assert not zero.delta().any()


# ---------------------------------------------------------------- the registry and its refusals


@pytest.mark.parametrize("name", RULES)
def test_every_rule_documents_itself(name):
    rule = RULES[name]
    assert rule.formula.endswith(".") and ("=" in rule.formula or name == "lori-s")
    assert all(option.check(option.default) and option.help for option in rule.options.values())
    assert rule.adapter_kind in ("closed-form", "frozen-read")
    if not rule.gauge_invariant:
        assert "gauge" in rule.function.__doc__ or "gauge-invariant" in rule.function.__doc__
    assert check(Merge(name)) == (rule, {key: option.default for key, option in rule.options.items()})


def test_the_flags():
    def having(flag):
        return {name for name, rule in RULES.items() if getattr(rule, flag)}

    fits = {"cat-fitted", "lorahub", "adaptive", "adaptive-random", "new-adapter"}
    on_factors = {"ties-factors", "dare-factors", "dare-ties-factors", "magnitude-prune-factors"}
    entries = {"ties", "dare", "dare-ties", "magnitude-prune", "knots"} | on_factors
    assert having("needs_data") == fits
    assert having("label_blind") == set(RULES) - fits
    assert having("needs_neurons") == entries | {"adaptive-random"}
    assert having("routed") == {"arrow-products", "arrow-factors"}
    factor_wise = {"linear", "linear-peft", "arrow-factors", "lorahub", "lori-d", "lori-s", "lora-lego"}
    factor_wise |= on_factors
    assert having("gauge_invariant") == set(RULES) - factor_wise


def test_every_fitted_rule_says_what_it_fits_and_every_control_is_fitted():
    for name, rule in RULES.items():
        if rule.fitted_by in ("products", "search"):
            assert RULES[rule.fits].weighted and not RULES[rule.fits].needs_data, name
            assert RULES[rule.fits].gauge_invariant == rule.gauge_invariant, name
        else:
            assert rule.fits is None, name
        assert rule.fitted_by or not rule.control, name


def test_a_temperature_is_an_option_of_routed_rules_and_can_be_swept():
    for name, rule in RULES.items():
        assert rule.tempered == ("temperature" in rule.options), name
        if rule.tempered:
            assert rule.routed and all(rule.options["temperature"].check(t) for t in (0.01, 1.0, 100.0)), name


@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_returns_keeps_the_protocol(name):
    """shift, rank and `to`; a routed one routes, a static one factors: whoever applies it needs no more."""
    adapters, asked = draw(0), prompts()
    merged = merge(adapters, Merge(name, weights_of(name, 2)), context())
    assert isinstance(merged, Routed) == RULES[name].routed
    assert merged.spectral_gap is None or RULES[name].spectral
    single = merged.to(lambda array: array.astype(np.float32), lambda array: array.astype(np.float64))
    assert single.shift(asked.astype(np.float32)).dtype == (np.float64 if RULES[name].routed else np.float32)
    assert type(single) is type(merged) and single.rank == merged.rank
    close(single.shift(asked), merged.shift(asked), factor=2**30)
    if RULES[name].routed:
        close(merged.mixed(asked, merged.routing(asked)), merged.shift(asked))
        return
    exact = merged.factored()
    assert merged.rank is None or exact.rank == merged.rank
    close(exact.shift(asked), merged.shift(asked))
    assert merged.distance(exact) <= ATOL * merged.distance()
    values = np.linalg.svd(exact.delta(), compute_uv=False)
    cut = merged.factored(1)
    assert cut.rank == 1 and merged.distance() == pytest.approx(norm(values), rel=1e-9)
    assert merged.distance(cut) == pytest.approx(norm(values[1:]), rel=1e-9)


def test_a_name_is_registered_once():
    with pytest.raises(RuleError, match="registered already"):
        merge_rule("sum", gauge_invariant=True)


def broken(which, value):
    lora = draw(0)[1]
    factor = getattr(lora, which).copy()
    factor[0, 0] = value
    return [draw(0)[0], LoRA(**{"write": lora.write, "read": lora.read, which: factor})]


OTHER_SIZE = LoRA(np.ones((ENTITIES + 1, RANK)), np.ones((FEATURES, RANK)))


@pytest.mark.parametrize(
    "adapters, spec, message",
    [
        (draw(0), Merge("average"), r"no merge rule 'average'; allowed: \['adaptive'"),
        (
            draw(0),
            Merge("ties", options={"densty": 0.2}),
            r"no option 'densty'; allowed: \['density', 'sign'\]",
        ),
        (draw(0), Merge("ties", options={"density": 0}), "density of rule 'ties' is 0; it has to be a share"),
        (draw(0), Merge("dare", options={"density": 1.5}), "density of rule 'dare' is 1.5"),
        (draw(0), Merge("dare", options={"density": True}), "density of rule 'dare' is True"),
        (draw(0), Merge("dare", options={"seed": -1}), "seed of rule 'dare' is -1"),
        (
            draw(0),
            Merge("ties", options={"sign": "most"}),
            r"'most'; it has to be one of \['total', 'frequency'\]",
        ),
        (draw(0), Merge("arrow-products", options={"temperature": 0.0}), "temperature .* above 0"),
        (draw(0), Merge("arrow-products", options={"top_k": 0}), "top_k .* is 0"),
        (draw(0), Merge("arrow-products", options={"top_k": 1.0}), "top_k .* is 1.0"),
        (draw(0), Merge("sum-truncated", options={"rank": 0}), "rank .* is 0"),
        (draw(0), Merge("lorahub", options={"penalty": -1}), "penalty .* is -1"),
        (draw(0), Merge("lorahub", options={"bound": 1e100}), r"bound .* above 0 and at most 1e\+06"),
        (draw(0), Merge("ties", options={"density": 10**300}), "density .* a share above 0"),
        (draw(0), Merge("sum", (1.0, -1e101)), r"at most 1e\+100 in size"),
        (draw(0), Merge("sum", (1.0,)), r"1 weights \(1.0,\) for 2 adapters"),
        (draw(0), Merge("mean", (0.5, 0.5)), "'mean' sets its own weights"),
        (draw(0), Merge("arrow-factors", (0.5, 0.5)), "'arrow-factors' sets its own weights"),
        ([], Merge("sum"), "at least one"),
        ([draw(0)[0], OTHER_SIZE], Merge("sum"), r"sizes \[\(6, 9\), \(7, 9\)\]"),
        ([LoRA(np.ones((6, 2)), np.ones((9, 3)))], Merge("sum"), "rank 2 and a read factor of rank 3"),
        ([LoRA(np.ones((6, 0)), np.ones((9, 0)))], Merge("arrow-products"), "at least 1"),
        (broken("write", np.nan), Merge("sum"), "write factor of adapter 1 holds NaN"),
        (broken("read", np.inf), Merge("ties"), "read factor of adapter 1 holds NaN"),
        *(
            ([draw(0)[0], draw(0, rank=3)[0]], Merge(rule), r"ranks \[2, 3\]")
            for rule in ("linear", "linear-peft", "ties-factors", "arrow-factors")
        ),
        (draw(0), Merge("cat-fitted"), "fitted on examples .* and got none"),
        ([draw(0)[0], LoRA(jnp.ones((6, 2)), jnp.ones((9, 2)))], Merge("sum"), "different libraries"),
        ([draw(0)[0], None], Merge("sum"), "adapter 1 is a NoneType; give LoRA"),
        (
            [LoRA([[1.0]], np.ones((9, 1)))],
            Merge("sum"),
            "write factor of adapter 0 is a list; give an array",
        ),
        ([LoRA(np.ones(6), np.ones((9, 1)))], Merge("sum"), r"write factor of adapter 0 has shape \(6,\)"),
        ([LoRA(np.ones((6, 1)), np.ones((9, 1, 1)))], Merge("sum"), r"read .* has shape \(9, 1, 1\)"),
        *(
            ([LoRA(np.ones((6, 1), kind), np.ones((9, 1), kind))], Merge(rule), f"numbers of type {kind}")
            for kind in ("int64", "bool", "complex128", "object")
            for rule in ("sum", "ties", "arrow-products")
        ),
    ],
)
def test_refusals(adapters, spec, message):
    with pytest.raises(RuleError, match=message):
        merge(adapters, spec)


@pytest.mark.parametrize(
    "features, targets, message",
    [
        (np.ones((2, FEATURES + 1)), np.ones((2, ENTITIES)), "have shapes"),
        (np.ones((2, FEATURES)), np.ones((3, ENTITIES)), "have shapes"),
        (np.ones((0, FEATURES)), np.ones((0, ENTITIES)), "got none"),
        (np.full((2, FEATURES), np.nan), np.ones((2, ENTITIES)), "NaN"),
        (np.ones((2, FEATURES), int), np.ones((2, ENTITIES)), "example_features holds numbers of type int64"),
        (np.ones((2, FEATURES)), np.ones(2), r"example_targets has shape \(2,\)"),
    ],
)
def test_examples_that_do_not_fit(features, targets, message):
    with pytest.raises(RuleError, match=message):
        merge(draw(0), Merge("adaptive"), MergeContext(example_features=features, example_targets=targets))


def test_a_logit_scale_has_to_be_positive():
    with pytest.raises(RuleError, match="logit_scale is 0"):
        merge(draw(0), Merge("arrow-products"), MergeContext(logit_scale=0.0))


def test_non_finite_weights_are_refused_even_if_a_spec_lets_them_through():
    spec = Merge("sum", (1.0, 1.0))
    object.__setattr__(spec, "weights", (1.0, math.nan))
    with pytest.raises(RuleError, match="finite"):
        merge(draw(0), spec)


def test_adapters_that_are_all_zero_have_no_shared_basis_and_merge_to_zero():
    zero = LoRA(np.zeros((ENTITIES, RANK)), np.ones((FEATURES, RANK)))
    for name in STATIC:
        merged = merge([zero, zero], Merge(name))
        assert not merged.shift(prompts()).any()
    assert merge([zero, zero], Merge("knots")).details["spectrum_gap"] == 0


def test_a_static_merge_can_be_dense_or_factored():
    lora = draw(0)[0]
    close(StaticMerge(lora).shift(prompts()), StaticMerge(lora.delta()).shift(prompts()))
